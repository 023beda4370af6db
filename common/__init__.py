"""What the stages share. Modules import only from those above them.

files -> config -> volumes -> slices -> unet -> losses -> distillation -> checkpoint -> scores
-> figures -> engine -> predict
"""
