# Makes a diskless worker of a stock image. Runs first thing in bootcmd, at every boot: every directory that anything
# writes to gets an overlay in memory. openquake-readonly-root.service then takes write access from the root disk.
# (overlayroot and systemd.volatile want an initramfs that the stock image has not.)
# These, and /tmp, take a quarter of the memory at most, since the processes of tasks need it.
set -eu
memory=/run/openquake/diskless
mkdir -p $memory /run/systemd/journald.conf.d
mount -t tmpfs -o mode=0755,size=25% openquake-diskless $memory
if [ "$(findmnt --noheadings --output FSTYPE --mountpoint /tmp)" = tmpfs ]; then mount -o remount,size=25% /tmp; fi
journalctl --relinquish-var
for directory in /etc /home /opt /root /srv /usr/local /var; do
    upper=$memory/upper$directory work=$memory/work$directory
    mkdir -p "$work" "$(dirname "$upper")"
    install -d -m "$(stat -c %a $directory)" "$upper" # the overlay's own
    mount -t overlay -o "lowerdir=$directory,upperdir=$upper,workdir=$work" openquake-diskless "$directory"
done
printf '[Journal]\nStorage=volatile\nRuntimeMaxUse=64M\n' > /run/systemd/journald.conf.d/openquake.conf
systemctl restart systemd-journald.service
set +eu
