"""What a training minimises: segmentation, reconstruction, and distillation from a teacher."""
