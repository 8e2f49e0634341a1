#!/bin/sh
# The `emiliad` of this machine: the installed one, with the settings that the service has.
# For root; whoever may not read the secrets gets told which are missing.
set -eu
umask 022 # the service reads the models that root fetches
root=${EMILIAD_ROOT:-}

# KEY=VALUE lines as systemd reads them: nothing in them is expanded, quotes around a value go.
settings() {
    [ -r "$1" ] || return 0
    while IFS= read -r line || [ -n "$line" ]; do
        case $line in
            '' | '#'* | ';'*) continue ;;
            *=*) name=${line%%=*} value=${line#*=} ;;
            *) continue ;;
        esac
        case $name in '' | [0-9]* | *[!A-Za-z0-9_]*) continue ;; esac
        case $value in
            \"*\") value=${value#\"} value=${value%\"} ;;
            \'*\') value=${value#\'} value=${value%\'} ;;
        esac
        # What the caller has set himself comes first.
        eval "[ -n \"\${$name+set}\" ]" || export "$name=$value"
    done <"$1"
}

settings "$root/opt/emiliad/venv/libraries.env"
settings "$root/etc/emiliad/emiliad.env"
settings "$root/etc/emiliad/credentials.env"
MODELS_DIR=${MODELS_DIR:-/var/lib/emiliad/models}
export MODELS_DIR
exec "$root/opt/emiliad/venv/bin/emiliad" "$@"
