#!/bin/sh
# End the service and what it has running, streams too: there will be nobody to end them later.
# setup.sh and the Debian package run it; a second time it changes nothing.
set -eu

systemctl disable --quiet --now scistream.service 2>/dev/null || :
# Proxies that were left running (on_shutdown = "keep"), and those in units of their own.
systemctl kill --signal=KILL scistream.service 2>/dev/null || :
systemctl stop 'scistream-*.scope' 2>/dev/null || :
rm -rf /run/scistream
rm -f /var/lib/scistream/tunnels
