#!/bin/sh
# What is left once the files of a gateway are in place: users, a configuration where there is none, a look at all of it,
# and the service. setup.sh and the Debian package run it; a second time it changes nothing.
# A host with /etc/scistream/s2ds.toml and no s2cs.toml is a further node of a gateway, and gets no gateway of its own.
#   configure.sh [options of `s2cs init`]
set -eu

s2cs=/opt/scistream/bin/s2cs
etc=/etc/scistream
config=$etc/s2cs.toml
state=/var/lib/scistream
logs=/var/log/scistream
node=$etc/s2ds.toml
changed=${SCISTREAM_CHANGED:-no}

say() { echo "scistream: $*" >&2; }

# run UNIT: have it running, of what is there now; streams go on.
run() {
    if [ "${SCISTREAM_START:-yes}" = no ]; then
        say "${1%.service} was stopped, and stays so; start it: systemctl start ${1%.service}"
        return
    fi
    systemctl enable --quiet "$1"
    if ! systemctl is-active --quiet "$1"; then
        if ! systemctl start "$1"; then
            say "$1 did not start; see: systemctl status $1"
            exit 1
        fi
        say "started; see: systemctl status ${1%.service}"
    elif [ "$changed" = yes ]; then
        systemctl restart "$1"
        say "restarted; streams went on"
    fi
}

systemd-sysusers scistream.conf

if [ -n "${SCISTREAM_NODE:-}" ]; then
    if [ -e "$config" ]; then
        say "this host has a gateway of its own, $config, and takes no settings of a node; its gateway is the node \"local\""
        exit 1
    fi
    install -d -m 0750 -o root -g scistream "$etc"
    if ! cmp -s "$SCISTREAM_NODE" "$node"; then
        install -m 0600 -o scistream -g scistream "$SCISTREAM_NODE" "$node"
        changed=yes
    fi
fi
if [ -e "$node" ] && [ ! -e "$config" ]; then
    [ $# -eq 0 ] || say "this host is a node of another gateway, so $* is not used; see $node"
    chown scistream:scistream "$node"
    run scistream-s2ds.service
    exit
fi

unfinished=$etc/.unfinished
if [ -e "$unfinished" ]; then
    say "an earlier run was interrupted while it made $config; that is made anew"
    rm -rf "$config" "$etc/token" "$etc/certs"
fi
if [ ! -e "$config" ]; then
    # Made by hand of what is not: the service's own directories, as the unit has them.
    install -d -m 0700 -o scistream -g scistream "$state" "$logs"
    mkdir -p "$etc"
    touch "$unfinished"
    if ! "$s2cs" init "$etc" --state-dir "$state" --audit-dir "$logs" "$@"; then
        rm "$unfinished"
        exit 1
    fi
    # The service reads its settings and its key, and may change neither; the CA's key and the token are root's.
    chown -R root:scistream "$etc"
    chmod 0750 "$etc" "$etc/certs"
    chown root:root "$etc/token" "$etc/certs/ca.key"
    chown scistream:scistream "$etc/certs/server.key"
    [ ! -e "$node" ] || chown scistream:scistream "$node"
    chown -R scistream:scistream "$state" "$logs"
    rm "$unfinished"
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

run scistream.service
