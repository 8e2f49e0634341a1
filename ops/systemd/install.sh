#!/bin/sh
# Installs emiliad as a service of this machine, or upgrades or removes it. Run it as root:
#
#   ops/systemd/install.sh [--extra gpu|cpu|none] [--python PYTHON] [--from WHEEL] [--no-venv]
#   ops/systemd/install.sh --uninstall [--purge]
#
# Doing it again changes nothing that is as it should be, and never a file in /etc/emiliad that exists.
# Each version gets an environment of its own, so that a running daemon keeps the one it started with;
# /opt/emiliad/venv leads to the newest, and the one before it stays for a way back.
# A service that runs is restarted if anything changed; it drains first.
# With DESTDIR everything goes below that folder, and the running system is left alone.
set -eu

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
source=$(CDPATH='' cd -- "$here/../.." && pwd)
root=${DESTDIR:-}
opt=$root/opt/emiliad
etc=$root/etc/emiliad
units=$root/etc/systemd/system
command=$root/usr/local/bin/emiliad
UNITS="emiliad.service emiliad@.service emiliad-gpu.service emiliad.slice"
extra=gpu python=python3 wheel='' venv=yes action=install purge=no
changed=no

say() { printf '%s\n' "$*"; }
fail() {
    printf 'install.sh: %s\n' "$*" >&2
    exit "${code:-1}"
}
usage() { sed -n '2,/^set -eu/{/^#/s/^# \{0,1\}//p;}' "$0"; }
live() { [ -z "$root" ] && [ -d /run/systemd/system ]; }

main() {
    while [ $# -gt 0 ]; do
        case $1 in
            --extra) extra=${2:-} && shift ;;
            --python) python=${2:-} && shift ;;
            --from) wheel=$(realpath "${2:-}") && shift ;;
            --no-venv) venv=no ;;
            --uninstall) action=uninstall ;;
            --purge) purge=yes ;;
            -h | --help) usage && exit 0 ;;
            *) code=2 fail "unknown option $1; --help says what there is" ;;
        esac
        shift
    done
    case $extra in gpu | cpu | none) ;; *) code=2 fail "--extra is gpu, cpu or none" ;; esac
    [ -n "$root" ] || [ "$(id -u)" = 0 ] || fail "only root can do this (or set DESTDIR)"
    "$action"
}

install() {
    [ "$venv" = no ] || environment
    put 644 "$source/ops/README.md" "$opt/ops/README.md"
    for unit in $UNITS; do put 644 "$here/$unit" "$units/$unit"; done
    put 755 "$here/emiliad.sh" "$command"
    put 644 "$here/emiliad.env.example" "$etc/emiliad.env.example"
    [ -e "$etc/emiliad.env" ] || put 644 "$here/emiliad.env.example" "$etc/emiliad.env"
    [ -e "$etc/credentials.env" ] || put 600 "$here/credentials.env.example" "$etc/credentials.env"
    if [ "$changed" = yes ] && live; then
        systemctl daemon-reload
        systemctl try-restart emiliad.service 'emiliad@*.service'
    fi
    say "emiliad is installed. New here? Edit $etc/emiliad.env and credentials.env, then:"
    say "  emiliad models pull && emiliad doctor && systemctl enable --now emiliad"
}

# The environment of this version, made unless it is there whole.
environment() {
    version=$(contents | cut -c1-12)
    new=$opt/versions/$version
    if [ ! -e "$new/complete" ]; then
        say "installing version $version with the packages for: $extra"
        mkdir -p "$opt/versions"
        "$source/ops/venv.sh" "$python" "$new"
        packages "$new/bin/python"
        libraries "$new" >"$new/libraries.env"
        : >"$new/complete"
    fi
    before=$(readlink "$opt/venv" || :)
    if [ "$before" != "versions/$version" ]; then
        ln -sfn "versions/$version" "$opt/venv.new"
        mv -T "$opt/venv.new" "$opt/venv"
        changed=yes
    fi
    for old in "$opt"/versions/*; do
        case versions/${old##*/} in versions/"$version" | "$before") ;; *) rm -rf "$old" ;; esac
    done
}

# A digest of what would be installed.
contents() {
    (
        cd "$source"
        say "$extra $("$python" -V)"
        if [ -n "$wheel" ]; then sha256sum <"$wheel"; fi
        find emiliad pipeline pyproject.toml constraints.txt requirements-gpu.txt \
            -type f ! -name '*.pyc' 2>/dev/null | LC_ALL=C sort | xargs -d '\n' sha256sum
    ) | sha256sum
}

packages() {
    what=$wheel copy='' pins=$source/constraints.txt lock=$source/requirements-gpu.txt
    if [ -z "$wheel" ]; then # a copy, for building leaves things behind
        copy=$(mktemp -d)
        what=$copy
        (cd "$source" && cp -R emiliad pipeline pyproject.toml README.md LICENSE "$copy/")
    fi
    case $extra in
        none) "$1" -m pip install --quiet --constraint "$pins" "$what" ;;
        cpu) "$1" -m pip install --quiet --constraint "$pins" "${what}[cpu]" ;;
        gpu)
            if [ -e "$lock" ] && [ "$(platform "$1")" = "3.11 x86_64" ]; then
                "$1" -m pip install --quiet --no-deps --require-hashes --requirement "$lock"
                "$1" -m pip install --quiet --no-deps "$what"
            else
                "$1" -m pip install --quiet --constraint "$pins" "${what}[gpu]"
                # faster-whisper asks for the CPU's package, whose files would hide the GPU's.
                "$1" -m pip uninstall --quiet --yes onnxruntime
                "$1" -m pip install --quiet --constraint "$pins" --force-reinstall --no-deps \
                    onnxruntime-gpu
            fi
            ;;
    esac
    [ -z "$copy" ] || rm -rf "$copy"
}

platform() {
    "$1" -c 'import platform, sys; print("%d.%d" % sys.version_info[:2], platform.machine())'
}

# CTranslate2 looks for CUDA's libraries by name alone, and they lie in wheels.
libraries() {
    found=$(find "$1"/lib/python3.*/site-packages/nvidia -type d -name lib 2>/dev/null | paste -sd: -)
    [ -z "$found" ] || say "LD_LIBRARY_PATH=$found"
}

# put MODE FROM TO: copies a file unless it is there already, as it should be.
put() {
    if [ -e "$3" ] && cmp -s "$2" "$3" && [ "$(stat -c %a "$3")" = "$1" ]; then return; fi
    mkdir -p "$(dirname "$3")"
    temporary=$(dirname "$3")/.${3##*/}.new
    (umask 077 && cp "$2" "$temporary")
    chmod "$1" "$temporary"
    mv "$temporary" "$3"
    changed=yes
    say "wrote $3"
}

uninstall() {
    if live; then
        systemctl disable --now emiliad.service 2>/dev/null || :
        systemctl stop 'emiliad@*.service' emiliad-gpu.service 2>/dev/null || :
    fi
    for unit in $UNITS; do rm -f "$units/$unit"; done
    rm -f "$command"
    rm -rf "$opt"
    ! live || systemctl daemon-reload
    if [ "$purge" = yes ]; then
        for kind in lib cache; do
            rm -rf "$root/var/$kind/emiliad" "$root/var/$kind/private/emiliad"
        done
        rm -rf "$etc"
        say "emiliad is gone, with its settings, secrets and models."
    else
        say "emiliad is gone. Kept: $etc, and models under $root/var/lib/emiliad (--purge)."
    fi
}

main "$@"
