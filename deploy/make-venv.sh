#!/bin/sh
# Make a virtual environment with the first Python here that is new enough and complete.
set -eu

venv=${1:?usage: make-venv.sh DIR}

for python in python3.13 python3.12 python3.11 python3; do
    # Debian splits ensurepip, without which venv fails, into a package of its own.
    if "$python" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
        exec "$python" -m venv "$venv"
    fi
done

echo "make-venv: there is no Python of 3.11 or newer with the venv module here;" \
    "install one (Debian, Ubuntu: apt-get install python3-venv; Fedora, RHEL: dnf install python3.11)" >&2
exit 1
