"""What both sides of SciStream share: protocol, session rules, vocabulary, certificates, errors.

gRPC has no setting for the lowest TLS version, and BoringSSL does not let TLS 1.3 suites be chosen. So
the list of suites for TLS 1.2 is reduced to one that neither side can use (it needs a pre-shared key):
what is left is TLS 1.3. gRPC reads the variable once, when its library is loaded, and whoever imports it
first decides; so it is set here, before anything else of this project is there.

Names are resolved as all other programs of the host do. gRPC's own resolver asks the name server as well for what is in
/etc/hosts, and a call waits until it is too late where that does not answer.
"""

import os

__version__ = "0.1.0"

os.environ["GRPC_SSL_CIPHER_SUITES"] = "ECDHE-PSK-CHACHA20-POLY1305"
os.environ.setdefault("GRPC_DNS_RESOLVER", "native")
os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # what gRPC logs, callers get as an error
