"""What the stages share. Modules import only from those before them.

files -> config -> volumes -> phantom -> slices -> loading -> unet -> losses -> distillation
-> device -> checkpoint -> scores -> figures -> runs -> engine -> predict
"""
