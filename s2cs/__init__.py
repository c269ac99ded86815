"""The gateway's side of SciStream."""

import scistream  # noqa: F401 - says what TLS gRPC speaks, and has to come before gRPC
