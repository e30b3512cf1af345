#!/usr/bin/env bash
# Writes constraints.txt: the newest versions pyproject.toml allows, as a fresh environment has them.
set -euo pipefail
cd "$(dirname "$0")/.."

python=${PYTHON:-python3}
extras=${EXTRAS:-dev,rabbitmq,kafka}
"$python" scripts/check_python.py

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
"$python" -m venv "$scratch/venv"
"$scratch/venv/bin/python" -m pip --disable-pip-version-check install -q ".[$extras]"
{
    echo "# The versions Queuecast is developed and tested with. Written by 'make lock'."
    "$scratch/venv/bin/python" -m pip --disable-pip-version-check freeze --exclude queuecast
} >"$scratch/constraints.txt"
if grep -nE '://| @ |^-' "$scratch/constraints.txt"; then
    echo "These lines are no plain name==version pins; constraints.txt is unchanged." >&2
    exit 1
fi
cp "$scratch/constraints.txt" constraints.txt
echo "constraints.txt: $(grep -c == constraints.txt) pins"
