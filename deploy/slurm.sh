#!/usr/bin/env bash
# A Ray cluster of one SLURM allocation, and one etrm-tune command on it.
#
#   sbatch --nodes=4 --cpus-per-task=16 --gpus-per-node=1 deploy/slurm.sh phase1 --runs /shared/runs
#
# Every word after the script goes to `python -m etrm_tune.run`. Submit it from the folder of
# etrm-tune, on storage that every node mounts; --runs too must lie there. Given again after a time
# limit or a node failure it continues; with --requeue SLURM does that itself.
#
#   ETRM_PYTHON   interpreter with etrm-tune, on every node   (default: .venv/bin/python)
#   ETRM_PORT     port of Ray's head                          (default: from the job's number)
#SBATCH --job-name=etrm-tune
#SBATCH --ntasks-per-node=1
#SBATCH --output=etrm-tune-%j.log
#SBATCH --signal=B:TERM@120
set -euo pipefail

cd "${SLURM_SUBMIT_DIR:?submit this script with sbatch}"
python=${ETRM_PYTHON:-.venv/bin/python}
ray=$(dirname "$python")/ray
port=${ETRM_PORT:-$((20000 + SLURM_JOB_ID % 10000))}
cpus=${SLURM_CPUS_PER_TASK:-${SLURM_CPUS_ON_NODE:?}}
gpus=${SLURM_GPUS_ON_NODE:-0}
mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=${nodes[0]}
address=$(getent ahostsv4 "$head" | awk 'NR == 1 { print $1 }'):$port

# What training needs of Ray must be known to its processes from the start.
eval "$("$python" -c 'from trainable.ray_adapter import ray_environment as e; print("\n".join(f"export {k}={v}" for k, v in e().items()))')"
# One token for all nodes of this job (Ray asks for it where it is set up for tokens).
export RAY_AUTH_MODE=${RAY_AUTH_MODE:-token}
RAY_AUTH_TOKEN=${RAY_AUTH_TOKEN:-$("$python" -c 'import secrets; print(secrets.token_hex(32))')}
export RAY_AUTH_TOKEN
# Sockets and logs: a short path, of this job alone.
temp=$(mktemp -d "/tmp/ray-${SLURM_JOB_ID}-XXXX")
# What a stopped run names as the command that continues it.
gpu_option=; [ "$gpus" = 0 ] || gpu_option="--gpus-per-node=$gpus "
export ETRM_TUNE_COMMAND="sbatch --nodes=${#nodes[@]} --cpus-per-task=$cpus ${gpu_option}deploy/slurm.sh"
# Two jobs on one machine must not meet.
ports=(--dashboard-agent-listen-port=$((port + 2)) --dashboard-agent-grpc-port=$((port + 3)))

# What srun reports of the nodes, until the command has ended: then they are stopped, which it would
# call an error.
nodes_say() { while IFS= read -r line; do [ -e "$temp/over" ] || printf '%s\n' "$line"; done >&2; }

stop() { kill -TERM "${run:?stopped before the run began}" 2>/dev/null || true; }
trap stop TERM INT

srun --nodes=1 --ntasks=1 --overlap -w "$head" \
  "$ray" start --head --node-ip-address="${address%:*}" --port="$port" --temp-dir="$temp" \
  --num-cpus="$cpus" --num-gpus="$gpus" --dashboard-host=127.0.0.1 --dashboard-port=$((port + 1)) \
  "${ports[@]}" --disable-usage-stats --block > /dev/null 2> >(nodes_say) &
heads=$!
until (exec 3<>"/dev/tcp/${address%:*}/$port") 2>/dev/null; do # its port answers
  kill -0 "$heads" 2>/dev/null || { echo "Ray's head did not start on $head" >&2; exit 1; }
  sleep 1
done
workers=()
for node in "${nodes[@]:1}"; do
  srun --nodes=1 --ntasks=1 --overlap -w "$node" \
    "$ray" start --address="$address" --num-cpus="$cpus" --num-gpus="$gpus" \
    "${ports[@]}" --disable-usage-stats --block > /dev/null 2> >(nodes_say) &
  workers+=($!)
done
# Until every node is there, five minutes at most: the command runs on those that came.
"$python" - "$address" "${#nodes[@]}" <<'PYTHON'
import sys
import time

import ray

end = time.monotonic() + 300
while time.monotonic() < end:
    try:
        ray.init(address=sys.argv[1], log_to_driver=False, logging_level="ERROR")
        break
    except Exception:  # not ready yet
        time.sleep(2)
while (found := sum(n["Alive"] for n in ray.nodes())) < int(sys.argv[2]):
    if time.monotonic() > end:
        print(f"{found} of {sys.argv[2]} nodes came", file=sys.stderr)
        break
    time.sleep(1)
PYTHON

"$python" -m etrm_tune.run "$@" --address "$address" &
run=$!
code=0
wait "$run" || code=$?
# A signal ends `wait` before the command has ended.
while kill -0 "$run" 2>/dev/null; do wait "$run" && code=0 || code=$?; done

touch "$temp/over"
kill -TERM "${workers[@]}" "$heads" 2>/dev/null || true
wait 2>/dev/null || true
rm -rf "$temp"
exit "$code"
