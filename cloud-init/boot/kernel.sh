# What a node wants of the kernel, the resolver, the clock and the logins of Debian's image; at every boot. Where it runs in a
# container, as in the lab, the kernel is not its own.
#
# A panic is a reboot, after 10 s: the master's instance is replaced by nobody.
sysctl --quiet --write kernel.panic=10 || true
# Debian's cloud kernel gives every process huge pages, asked for or not: more memory than a worker's process counts with.
echo madvise > /sys/kernel/mm/transparent_hugepage/enabled || true
# Answers to neighbours' questions for names, on all interfaces: nobody in a VPC asks.
mkdir -p /run/systemd/resolved.conf.d
printf '[Resolve]\nLLMNR=no\nMulticastDNS=no\n' > /run/systemd/resolved.conf.d/openquake.conf
systemctl try-restart --no-block systemd-resolved.service
# AWS's clock, which each instance reaches on its own link: a worker has no way to Debian's.
mkdir -p /run/systemd/timesyncd.conf.d
printf '[Time]\nNTP=169.254.169.123\n' > /run/systemd/timesyncd.conf.d/openquake.conf
systemctl try-restart --no-block systemd-timesyncd.service
# A calculation outlives the shell that started it; its shared memory would go with its user's last login.
mkdir -p /run/systemd/logind.conf.d
printf '[Login]\nRemoveIPC=no\n' > /run/systemd/logind.conf.d/openquake.conf
systemctl try-restart --no-block systemd-logind.service
