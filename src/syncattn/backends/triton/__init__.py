"""The backend of the GPU kernels. Only operator.py is imported without triton."""
