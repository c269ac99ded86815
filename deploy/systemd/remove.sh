#!/bin/sh
# End the services and what they have running, streams too: there will be nobody to end them later.
# setup.sh and the Debian package run it; a second time it changes nothing.
set -eu

for unit in scistream.service scistream-s2ds.service; do
    systemctl disable --quiet --now "$unit" 2>/dev/null || :
    # Proxies that were left running (on_shutdown = "keep").
    systemctl kill --signal=KILL "$unit" 2>/dev/null || :
done
# Those in units of their own, and the slice that these are in.
systemctl stop scistream.slice 2>/dev/null || :
rm -rf /run/scistream /run/scistream-s2ds
rm -f /var/lib/scistream/tunnels /var/lib/scistream-s2ds/tunnels
