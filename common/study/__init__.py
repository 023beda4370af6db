"""Many runs compared: which are trained, in which order, and their tables and charts."""
