# What turns a fresh Debian tree into the image of the lab's machines. It runs
# inside the tree, as root. $1 is the user who may use sudo.
set -euo pipefail
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8
mount -t proc proc /proc

# Consul and nfpm are lent by the host that the machine runs on, and Go too.
install -d bin
printf '#!/bin/sh\n' | tee bin/consul >bin/nfpm
chmod +x bin/*
packaging/setup test
# What the package of understudy depends on and recommends.
DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends polkitd logrotate
apt-get clean
ln -s /usr/local/go/bin/go /usr/local/go/bin/gofmt /usr/local/bin/

adduser --disabled-password --gecos '' "$1"
echo "$1 ALL=(ALL) NOPASSWD: ALL" >/etc/sudoers.d/lab
install -d -o "$1" -g "$1" "/home/$1/go" "/home/$1/go/pkg" "/home/$1/go/pkg/mod" "/home/$1/.cache" "/home/$1/.cache/go-build"
# The repository to clone from is mounted, and belongs to another user.
git config --system safe.directory '*'

systemctl enable systemd-networkd.service
systemctl mask systemd-networkd-wait-online.service
ln -sf /lib/systemd/system/multi-user.target /etc/systemd/system/default.target
rm -f /etc/resolv.conf /etc/machine-id /etc/hostname
touch /etc/machine-id
rm -r /root/lab
