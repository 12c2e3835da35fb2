#!/usr/bin/env bash
# Makes the virtual environment of the Django peer in the folder given, if it is not there as
# requirements.txt wants it.
set -euo pipefail

readonly venv=$1
cd "$(dirname "${BASH_SOURCE[0]}")"

if cmp -s requirements.txt "$venv/installed.txt"; then exit 0; fi
python3 -m venv --clear "$venv"
"$venv/bin/pip" install --quiet --disable-pip-version-check -r requirements.txt
cp requirements.txt "$venv/installed.txt"
