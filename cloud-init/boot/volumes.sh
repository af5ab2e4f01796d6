#!/bin/sh
# Mounts one of the master's data volumes: openquake-volume DIRECTORY. A systemd unit for each runs it at every boot,
# before the services that need it, and again when it fails. User data put VOLUMES ("mountpoint=device ...") in front.
#
# /var is a data volume, but dpkg's database, cloud-init's state and everything else below /var/lib and /var/cache
# describe the image that booted, not the data. So those two stay the image's, and only /var/lib/openquake comes from
# the volume. After a replacement of the master `dpkg -l` is true and the calculations' database is still there.
set -eu
directory=$1

wait_for_device() { # an attachment happens after power-on
    waited=0
    until [ -b "$1" ]; do
        [ $((waited % 60)) -ne 5 ] || echo "waiting for $1: is the volume attached?"
        sleep 1
        waited=$((waited + 1))
    done
}

format_if_blank() { # any signature at all means data
    signature=$(wipefs --noheadings --output TYPE "$1")
    if [ -z "$signature" ]; then
        echo "formatting the blank volume $1"
        mkfs.ext4 -q -m 1 "$1"
    else
        fsck -p "$1" || [ $? -eq 1 ] # 1: errors found and corrected
    fi
}

mount_var() {
    data=/run/openquake/var image=/run/openquake/image
    mkdir -p $data $image
    # Private, so that what is mounted on /var below does not appear in these two as well; the bind of / is not
    # recursive: the image's own /var stays visible in it.
    mount --make-private --options "$options" "$1" $data
    mount --bind --make-private / $image
    # What the volume lacks: all of it at first, and later what another image or another machine has more.
    for entry in $image/var/* $image/var/spool/* $image/var/log/* $image/var/log/journal/*; do
        name=${entry#"$image/var/"}
        [ -e "$data/$name" ] || [ -L "$data/$name" ] || case $name in
            lib | cache) mkdir "$data/$name" ;;
            *'*') ;; # nothing is there
            *) cp -a "$entry" "$data/$name" ;;
        esac
    done
    mkdir -p $data/lib/openquake $image/var/lib/openquake
    journalctl --relinquish-var # the journal moves with /var
    mount --bind $data /var
    mount --bind $image/var/lib /var/lib
    mount --bind $image/var/cache /var/cache
    mount --bind $data/lib/openquake /var/lib/openquake
    for log in cloud-init.log cloud-init-output.log; do # cloud-init holds them open on the image
        touch /var/log/$log
        mount --bind $image/var/log/$log /var/log/$log
    done
    journalctl --flush
    umount $image $data
    # The journals of machines before this one, which nothing else ever shortens.
    find /var/log/journal -mindepth 1 -maxdepth 1 ! -name "$(cat /etc/machine-id)" -mtime +90 -exec rm -r {} +
}

for volume in $VOLUMES; do
    [ "$directory" != "${volume%%=*}" ] || device=${volume#*=}
done
if mountpoint -q "$directory"; then exit; fi
wait_for_device "$device"
if [ "$directory" = /var ]; then umount --quiet /run/openquake/image /run/openquake/var || true; fi # of a failed attempt
format_if_blank "$device"
case $directory in
    /var/*) until mountpoint -q /var; do sleep 0.2; done ;; # which would hide it
esac
mkdir -p /run/openquake
exec 9> /run/openquake/volumes.lock
flock 9
options=errors=remount-ro
if [ "$directory" = /var ]; then
    mount_var "$device"
else
    mkdir -p "$directory"
    mount --options $options "$device" "$directory"
fi
echo "$directory is on $device"
