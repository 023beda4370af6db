"""What the stages share. Modules import only from those before them.

files -> config -> settings -> arms -> labels -> volumes -> cases -> layouts -> views -> phantom
-> slices -> pictures -> splits -> loading -> device -> unet -> transunet -> losses -> contrast ->
maps -> surfaces -> scores -> measures -> distillation -> checkpoint -> statistics -> tables ->
errors -> embedding -> figures -> report -> charts -> study -> interruption -> runs -> engine ->
teachers -> trained -> reconstruction -> jobs -> segment -> export -> predict -> steps
"""
