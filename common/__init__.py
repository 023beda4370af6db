"""What the stages share. Modules import only from those before them.

files -> config -> arms -> volumes -> phantom -> slices -> loading -> unet -> transunet -> losses
-> contrast -> maps -> scores -> distillation -> device -> checkpoint -> statistics -> tables
-> errors -> embedding -> figures -> charts -> study -> runs -> engine -> teachers -> predict
-> steps
"""
