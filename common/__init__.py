"""What the stages share. Modules import only from those before them.

files -> config -> settings -> arms -> organs -> formats -> geometry -> volumes -> processes ->
cases -> doubts -> layouts -> views -> phantom -> slices -> splits -> pictures -> masks ->
mask_doubts -> picture_folders -> user_tables -> patients -> pairs -> loading -> device -> unet ->
transunet -> losses -> contrast -> maps -> surfaces -> scores -> scoring -> measures -> distillation
-> checkpoint -> intervals -> statistics -> tables -> mistakes -> embedding -> figures -> report ->
charts -> study -> interruption -> runs -> resume -> engine -> teachers -> trained -> reconstruction
-> jobs -> segment -> export -> predict -> steps -> plan
"""
