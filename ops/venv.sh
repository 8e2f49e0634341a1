#!/bin/sh
# Makes a virtual environment with pip in it: venv.sh PYTHON DIRECTORY
# Debian's python3 comes without ensurepip; then pip is put in by another way.
set -eu
python=$1 dir=$2
"$python" - <<'PY' || exit 1
import sys
if sys.version_info < (3, 11):
    sys.exit(f"emiliad needs Python 3.11 or newer; {sys.executable} is {sys.version.split()[0]}. "
             "Name another with `make PYTHON=python3.11 ...`.")
PY
rm -rf "$dir"
if "$python" -c 'import ensurepip' 2>/dev/null; then
    "$python" -m venv "$dir"
else
    "$python" -m venv --without-pip "$dir"
    "$python" -m pip --python "$dir/bin/python" install --quiet pip 2>/dev/null ||
        "$dir/bin/python" -c 'import urllib.request as u; exec(u.urlopen("https://bootstrap.pypa.io/get-pip.py").read())' --quiet || {
        rm -rf "$dir"
        echo "Python has neither ensurepip nor pip here: on Debian, apt-get install python3-venv" >&2
        exit 1
    }
fi
