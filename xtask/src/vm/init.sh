#!/bin/busybox sh
# The guest's first process: mounts, modules, one command, the end.
# An emulated machine is slow: tests have rates so many times lower, and wait so many times longer.
export PATH=/bin HOME=/tmp TEST_PACE=10
# Nobody can change the root that the kernel gave for another one, as pods do; a mount of it they can.
if [ "$1" != mounted ]; then
    /bin/busybox mount --bind / /mnt
    cd /mnt
    /bin/busybox mount --move . /
    exec /bin/busybox chroot . /init mounted
fi
# Programs that are there already stay.
/bin/busybox --install -s /bin 2> /dev/null
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mount -t tmpfs run /run
mount -t cgroup2 cgroup /sys/fs/cgroup
mount -t bpf bpf /sys/fs/bpf
# As systemd does, for what is below.
for controller in cpu memory pids; do
    echo "+$controller" > /sys/fs/cgroup/cgroup.subtree_control
done
for module in /modules/*.ko; do
    insmod "$module" || echo "cannot load $module"
done
ip link set lo up

uname -a
# Tests hold every connection open that they keep.
ulimit -n 65536
/command
echo "FAIRLEAD-VM-EXIT $?"
poweroff -f
