#!/bin/bash
# The first process of a host of the sandbox, in fresh namespaces: host.sh FOLDER NAME ADDRESS [SLURMD'S CONF]
# Without the last it is the login host, which only holds its namespaces and the bridge that joins all.
folder=$1 name=$2 address=$3 conf=${4:-}
read -r outer _ < /proc/self/stat # still the outer /proc: our number as seen from outside
if [ -n "$conf" ]; then
    mount -t proc proc /proc || exit 1
    mount -t tmpfs -o mode=1777 shm /dev/shm || exit 1
fi
hostname "$name"
mount --bind "$folder/hosts" /etc/hosts || exit 1
ip link set lo up
if [ -z "$conf" ]; then
    { ip link add br0 type bridge && ip addr add "$address/24" dev br0 && ip link set br0 up; } || exit 1
fi
echo "$outer" > "$folder/run/$name.new" && mv "$folder/run/$name.new" "$folder/run/$name"
if [ -z "$conf" ]; then
    while :; do sleep 86400; done
fi
until [ -e "$folder/run/$name.wired" ]; do sleep 0.05; done
{ ip addr add "$address/24" dev eth0 && ip link set eth0 up; } || exit 1
slurmd -D -f "$conf" &
while :; do
    wait # as the first process of its namespace: reaps what is orphaned, and stays should slurmd end
    sleep 0.2
done
