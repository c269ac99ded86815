#!/bin/sh
# What is left once the files of a gateway are in place: users, a configuration where there is none, a look at all of it,
# and the service. setup.sh and the Debian package run it; a second time it changes nothing.
#   configure.sh [options of `s2cs init`]
set -eu

s2cs=/opt/scistream/bin/s2cs
etc=/etc/scistream
config=$etc/s2cs.toml
state=/var/lib/scistream
logs=/var/log/scistream

say() { echo "scistream: $*" >&2; }

systemd-sysusers scistream.conf

if [ ! -e "$config" ]; then
    # Made by hand of what is not: the service's own directories, as the unit has them.
    install -d -m 0700 -o scistream -g scistream "$state" "$logs"
    "$s2cs" init "$etc" --state-dir "$state" --audit-dir "$logs" "$@"
    # The service reads its settings and its key, and may change neither; the CA's key and the token are root's.
    chown -R root:scistream "$etc"
    chmod 0750 "$etc" "$etc/certs"
    chown root:root "$etc/token" "$etc/certs/ca.key"
    chown scistream:scistream "$etc/certs/server.key"
    chown -R scistream:scistream "$state" "$logs"
elif [ $# -gt 0 ]; then
    say "$config is there already, so $* is not used; edit that file, then: systemctl reload scistream"
fi

# As the service: what it cannot read is a fault.
user=$(systemctl show --property User --value scistream.service)
user=${user:-scistream}
if ! report=$(setpriv --reuid "$user" --regid "$user" --init-groups -- "$s2cs" check --config "$config" 2>&1); then
    echo "$report" >&2
    say "mend these faults, then run: systemctl enable --now scistream"
    exit 1
fi
echo "$report" | grep '^warn' >&2 || :

systemctl enable --quiet scistream.service
if [ "${SCISTREAM_CHANGED:-no}" = yes ] && systemctl is-active --quiet scistream.service; then
    systemctl restart scistream.service # streams go on
    say "restarted; streams went on"
elif ! systemctl is-active --quiet scistream.service; then
    systemctl start scistream.service
    say "started; see: systemctl status scistream"
fi
