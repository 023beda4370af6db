"""What the stages share. Modules import only from those before them.

files -> config -> volumes -> phantom -> slices -> loading -> unet -> transunet -> losses
-> contrast -> distillation -> device -> checkpoint -> scores -> statistics -> tables -> figures
-> charts -> study -> runs -> engine -> teachers -> predict -> steps
"""
