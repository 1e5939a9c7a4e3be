# Sourced by the commands beside it: makes .venv in the repository's root and installs the package into it.
#
#   use_venv EXTRAS    leaves $root (the repository), $venv_bin (the environment's commands), and the current
#                      directory as it was
#
# The environment is made from the first Python >= 3.11 on PATH and made again when that Python has gone. The package
# is installed again when pyproject.toml has changed, the repository has moved, or an extra is missing that the command
# needs; otherwise this costs a few milliseconds.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
venv="$root/.venv"
venv_bin="$venv/bin"

say() { printf '%s\n' "$*" >&2; }

find_python() {
    local name
    for name in python3.13 python3.12 python3.11 python3 python; do
        # Run it: a name on PATH may be a shim without a Python behind it, too old, or packaged without venv.
        if "$name" -c 'import sys, ensurepip, venv; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
            command -v "$name"
            return
        fi
    done
    say "error: no Python 3.11 or newer with the modules venv and ensurepip was found on PATH."
    say "       Looked for python3.13, python3.12, python3.11, python3 and python. Install one and run this again"
    say "       (on Debian and Ubuntu: apt-get install python3 python3-venv)."
    return 1
}

use_venv() {
    local extras=$1 python source stamped="" installed=""
    local stamp="$venv/.leanconv-installed" # two lines: what was installed from, and the extras

    if ! "$venv_bin/python" -c '' >/dev/null 2>&1; then
        python=$(find_python)
        say "Making .venv with $("$python" --version) ..."
        "$python" -m venv --clear "$venv"
    fi

    source=$({ printf '%s\n' "$root"; cat "$root/pyproject.toml"; } | cksum)
    if [[ -f "$stamp" ]]; then
        { read -r stamped && read -r installed; } <"$stamp" || true
        [[ "$installed" == dev ]] && extras=dev # everything any command needs: keep it when installing again
        [[ "$stamped" == "$source" && "$installed" == "$extras" ]] && return
    fi
    say "Installing leanconv and its dependencies ($extras) into .venv; the first time takes about a minute ..."
    rm -f "$stamp"
    "$venv_bin/python" -m pip install --quiet --disable-pip-version-check --editable "$root[$extras]"
    printf '%s\n%s\n' "$source" "$extras" >"$stamp"
    say "Installed."
}
