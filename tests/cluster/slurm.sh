#!/usr/bin/env bash
# A real SLURM on one Debian 12 machine, as root, without systemd:
#   slurm.sh start USER | slurm.sh start_nodes | slurm.sh lose_node node2 | slurm.sh stop
# slurmctld, slurmd, slurmdbd, munge and MariaDB; the partition and account l40s as at NIG, a node that advertises what
# an L40S node there has (its GPUs are device nodes without a driver), memory limits by cgroup where v1 is mounted.
# start_nodes adds node1 and node2, which then take all jobs: they share the machine's files and users, and have a network, a
# host name and processes of their own. lose_node takes one away as a power cut would.
set -euo pipefail
lab=${LAB:-/opt/cluster-lab}/slurm
host=$(hostname -s)
network=10.77.0 # of the nodes; the machine is .254 in it
mysql_socket=$lab/mysql.sock
pids=("$lab/run/$host.pid" "$lab/run/slurmctld.pid" "$lab/run/slurmdbd.pid" /run/munge/munged.pid "$lab/mysql.pid")

running() { [ -s "$1" ] && kill -0 "$(cat "$1")" 2>/dev/null; }
wait_for() {
  for _ in $(seq 150); do if "$@" &>/dev/null; then return; fi; sleep 0.2; done
  echo "slurm.sh: waited 30 s in vain for: $*" >&2
  return 1
}

stop() {
  for node in node1 node2; do lose_node "$node"; done
  ip link del lab 2>/dev/null || true
  for file in "${pids[@]}"; do
    if running "$file"; then
      pid=$(cat "$file")
      kill "$pid"
      for _ in $(seq 75); do kill -0 "$pid" 2>/dev/null || break; sleep 0.2; done
      kill -9 "$pid" 2>/dev/null || true
    fi
  done
  rm -f /etc/slurm/slurm.conf # else every call of Snakemake would wait for this SLURM
}

install_packages() {
  packages=(slurm-wlm slurmdbd slurm-client munge mariadb-server iproute2)
  if ! dpkg -s "${packages[@]}" &>/dev/null; then
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${packages[@]}" >/dev/null
  fi
}

start_munge() {
  install -d -o munge -g munge -m700 /etc/munge /var/lib/munge /var/log/munge
  install -d -o munge -g munge -m755 /run/munge
  [ -s /etc/munge/munge.key ] || head -c 1024 /dev/urandom > /etc/munge/munge.key
  chown munge:munge /etc/munge/munge.key && chmod 400 /etc/munge/munge.key
  munge -n &>/dev/null || runuser -u munge -- /usr/sbin/munged
  wait_for munge -n
}

start_database() {
  if [ ! -d "$lab/mysql/mysql" ]; then
    install -d -o mysql -g mysql "$lab/mysql"
    mariadb-install-db --user=mysql --datadir="$lab/mysql" --auth-root-authentication-method=socket \
      --skip-test-db &> "$lab/log/mysql_install.log"
  fi
  chown mysql "$lab"
  if ! running "$lab/mysql.pid"; then
    setsid mariadbd --no-defaults --user=mysql --datadir="$lab/mysql" --socket="$mysql_socket" \
      --pid-file="$lab/mysql.pid" --bind-address=127.0.0.1 --port=33306 --skip-name-resolve \
      --innodb-buffer-pool-size=64M --innodb-lock-wait-timeout=900 &> "$lab/log/mysql.log" </dev/null &
  fi
  wait_for mariadb-admin --no-defaults --socket="$mysql_socket" ping
  mariadb --no-defaults --socket="$mysql_socket" -e "
    CREATE DATABASE IF NOT EXISTS slurm_acct_db;
    CREATE USER IF NOT EXISTS 'slurm'@'127.0.0.1' IDENTIFIED BY 'lab';
    GRANT ALL ON slurm_acct_db.* TO 'slurm'@'127.0.0.1';"
}

write_configuration() {
  if [ -d /sys/fs/cgroup/memory ] && [ -d /sys/fs/cgroup/freezer ]; then
    tracking=(proctrack/cgroup task/cgroup)
  else
    tracking=(proctrack/linuxproc task/none)
  fi
  for gpu in 0 1 2 3 4 5 6 7; do
    [ -e "$lab/nvidia$gpu" ] || mknod -m 666 "$lab/nvidia$gpu" c 195 "$gpu"
  done
  cat > /etc/slurm/slurmdbd.conf <<CONF
AuthType=auth/munge
DbdHost=localhost
SlurmUser=slurm
LogFile=$lab/log/slurmdbd.log
PidFile=$lab/run/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort=33306
StoragePass=lab
StorageUser=slurm
StorageLoc=slurm_acct_db
CONF
  chown slurm /etc/slurm/slurmdbd.conf && chmod 600 /etc/slurm/slurmdbd.conf
  cat > /etc/slurm/slurm.conf <<CONF
ClusterName=lab
SlurmctldHost=$host(127.0.0.1)
SlurmUser=slurm
AuthType=auth/munge
ProctrackType=${tracking[0]}
TaskPlugin=${tracking[1]}
EnforcePartLimits=ALL
ReturnToService=2
SlurmctldPidFile=$lab/run/slurmctld.pid
SlurmdPidFile=$lab/run/%n.pid
SlurmdSpoolDir=$lab/slurmd/%n
StateSaveLocation=$lab/slurmctld
SlurmctldLogFile=$lab/log/slurmctld.log
SlurmdLogFile=$lab/log/%n.log
SlurmdParameters=config_overrides
SchedulerParameters=sched_interval=2,sched_min_interval=0,bf_interval=2,batch_sched_delay=0
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
GresTypes=gpu
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageEnforce=associations
AccountingStorageTRES=gres/gpu
AccountingStoreFlags=job_script,job_env,job_comment
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=2
KillWait=5
SlurmdTimeout=60
DefMemPerCPU=4096
NodeName=DEFAULT CPUs=128 Boards=1 SocketsPerBoard=1 CoresPerSocket=128 ThreadsPerCore=1 RealMemory=770000 Gres=gpu:l40s:8
NodeName=$host NodeAddr=127.0.0.1 State=UNKNOWN
NodeName=node[1-2] NodeAddr=$network.[1-2] State=DOWN
PartitionName=l40s Nodes=ALL Default=YES MaxTime=124-00:00:00 DefaultTime=3-00:00:00 AllowAccounts=l40s State=UP
CONF
  echo "NodeName=$host,node[1-2] Name=gpu Type=l40s File=$lab/nvidia[0-7]" > /etc/slurm/gres.conf
  cat > /etc/slurm/cgroup.conf <<CONF
CgroupPlugin=cgroup/v1
CgroupAutomount=yes
ConstrainRAMSpace=yes
CONF
}

start() {
  install_packages
  install -d "$lab" "$lab/log" "$lab/slurmd" /etc/slurm
  install -d -o slurm -g slurm "$lab/run" "$lab/slurmctld"
  chown slurm "$lab/log"
  start_munge
  start_database
  write_configuration
  running "$lab/run/slurmdbd.pid" || runuser -u slurm -- slurmdbd
  wait_for sacctmgr -n list cluster
  sacctmgr -n list cluster format=cluster | grep -qw lab || sacctmgr -i -Q add cluster lab
  sacctmgr -nP list account format=account | grep -qx l40s || sacctmgr -i -Q add account l40s cluster=lab
  sacctmgr -nP list assoc format=user | grep -qx "$1" || sacctmgr -i -Q add user "$1" account=l40s cluster=lab
  running "$lab/run/slurmctld.pid" || runuser -u slurm -- slurmctld
  wait_for scontrol ping
  for node in node1 node2; do # what a former call has left
    running "$lab/run/$node" || scontrol update nodename="$node" state=down reason="not started"
  done
  running "$lab/run/$host.pid" || slurmd
  if sinfo -h -n "$host" -o %t | grep -q ^dr; then scontrol update nodename="$host" state=resume; fi
  wait_for bash -c 'sinfo -h -n "$0" -o %t | grep -qE "^(idle|mix|alloc)$"' "$host"
}

lose_node() {
  ip link del "$1" 2>/dev/null || true # first: what is killed must not take leave of those it talks to
  if running "$lab/run/$1"; then kill -9 "$(cat "$lab/run/$1")"; fi
  rm -f "$lab/run/$1"
  ip netns del "$1" 2>/dev/null || true
}

start_node() {
  lose_node "$1" # what a former call may have left
  ip netns add "$1"
  ip link add "$1" type veth peer name eth0 netns "$1"
  ip link set "$1" master lab up
  ip -n "$1" addr add "$network.${1#node}/24" dev eth0
  ip -n "$1" link set eth0 up
  ip -n "$1" link set lo up
  # bash as the first process, as an init: its end is the end of all
  setsid nsenter --net="/run/netns/$1" unshare --mount --uts --pid --fork --kill-child --mount-proc bash -ec '
    hostname "$0"
    mount --bind "$1/nodes/hosts" /etc/hosts
    mount --bind "$1/nodes/slurm.conf" /etc/slurm/slurm.conf
    slurmd -D -N "$0"
    exit' "$1" "$lab" &> "$lab/log/$1.start.log" </dev/null &
  echo $! > "$lab/run/$1"
}

start_nodes() {
  ip link show lab &>/dev/null || ip link add lab type bridge
  ip addr replace "$network.254/24" dev lab
  ip link set lab up
  mkdir -p "$lab/nodes"
  printf '%s\n' "127.0.0.1 localhost" "$network.1 node1" "$network.2 node2" > "$lab/nodes/hosts"
  sed "s/(127.0.0.1)/($network.254)/" /etc/slurm/slurm.conf > "$lab/nodes/slurm.conf"
  for node in node1 node2; do
    running "$lab/run/$node" || start_node "$node"
    wait_for bash -c ": < /dev/tcp/$network.${node#node}/6818"
  done
  scontrol update nodename="$host" state=drain reason="the nodes take all jobs"
  wait_for bash -c '[ "$(sinfo -h -N -n node1,node2 -o %t | grep -cE "^(idle|mix|alloc)$")" = 2 ]'
}

umask 022
"$@"
