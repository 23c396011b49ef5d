#!/usr/bin/env bash
# Trains with DeepSpeed's launcher on this machine, or on the machines of a hostfile.
#
#   CONFIG=launch/quickstart.yaml PROCESSES=2 launch/train.sh [--set a.b=c ...]
#
# CONFIG      run config (YAML); required
# PROCESSES   processes on each machine, one per GPU (without GPUs: any number); default 1
# HOSTFILE    DeepSpeed hostfile, lines such as "node1 slots=8"; empty for this machine alone
# MASTER_PORT port of the first process; default: one that is free on this machine
#
# Everything after the script's name goes to `slmkit train`. Start it again to continue an interrupted run.
set -euo pipefail

# DeepSpeed would train on this machine alone if the hostfile were missing.
if [ -n "${HOSTFILE:-}" ] && [ ! -f "$HOSTFILE" ]; then echo "there is no hostfile $HOSTFILE" >&2; exit 2; fi
free_port() { python -c 'import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])'; }
exec deepspeed \
    ${HOSTFILE:+--hostfile "$HOSTFILE"} \
    --num_gpus "${PROCESSES:-1}" \
    --master_port "${MASTER_PORT:-$(free_port)}" \
    --module slmkit train --config "${CONFIG:?name the run config}" "$@"
