"""The registry's wire format: `registry.proto`, the code generated from it, and the codec to and from records.

Generated with, from the `bootstrap` folder:
`python -m grpc_tools.protoc -Ibaton_bootstrap/wire/generated=baton_bootstrap/wire
--python_out=. --pyi_out=. --grpc_python_out=. baton_bootstrap/wire/generated/registry.proto`
"""

MAX_MESSAGE = 64 * 1024 * 1024  # bytes; a snapshot of ten thousand workers with ample details fits
