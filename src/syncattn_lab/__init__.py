"""The laboratory: the audit of the paper's claims, the quality study, and the project's own targets.

It uses the library, `syncattn`, which does not know it: the command line finds `syncattn paper` and
`syncattn study` by their entry points. docs/laboratory.md says how to run them.
"""
