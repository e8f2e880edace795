"""The classes of this model are in the package syncattn: pip install 'syncattn[hf]'."""

from syncattn.models import OSNConfig, OSNForCausalLM  # noqa: F401
