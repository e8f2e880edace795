"""The backend of the GPU kernels. Only operator.py and blocks.py are imported without triton."""
