# Mounts the master's data volumes. Runs in bootcmd: at every boot, before any service that needs them.
# user data puts VOLUMES ("mountpoint=device ...", /var first) and DEADLINE (seconds to wait for a device) in front.
#
# /var is a data volume, but dpkg's database, cloud-init's state and everything else below /var/lib and /var/cache
# describe the image that booted, not the data. So those two stay the image's, and only /var/lib/openquake comes from
# the volume. After a replacement of the master `dpkg -l` is true and the calculations' database is still there.
set -eu

say() { echo "openquake-volumes: $*"; }

wait_for_device() { # an attachment happens after power-on
    waited=0
    until [ -b "$1" ]; do
        [ "$waited" -lt "$DEADLINE" ] || { say "no device $1 after $DEADLINE s: is the volume attached?"; return 1; }
        [ $((waited % 15)) -ne 0 ] || say "waiting for $1"
        sleep 1
        waited=$((waited + 1))
    done
}

format_if_blank() { # any signature at all means data
    signature=$(wipefs --noheadings --output TYPE "$1")
    if [ -z "$signature" ]; then
        say "formatting the blank volume $1"
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
    mount --make-private "$1" $data
    mount --bind --make-private / $image
    for entry in $image/var/*; do
        name=${entry##*/}
        [ -e "$data/$name" ] || [ -L "$data/$name" ] || case $name in
            lib | cache) mkdir "$data/$name" ;;
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
}

for volume in $VOLUMES; do
    directory=${volume%%=*} device=${volume#*=}
    if mountpoint -q "$directory"; then continue; fi
    wait_for_device "$device"
    format_if_blank "$device"
    if [ "$directory" = /var ]; then
        mount_var "$device"
    else
        mkdir -p "$directory"
        mount "$device" "$directory"
    fi
    say "$directory is on $device"
done
