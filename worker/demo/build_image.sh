#!/bin/bash
# Builds the demonstration's container image without Docker and pushes it to a registry that speaks plain HTTP.
# usage: build_image.sh CACHE_DIRECTORY REGISTRY     (as root; prints the image's reference)
#
# The base is what apt would install for Python, NumPy and Pillow on an empty machine, unpacked: no maintainer script
# runs. It stays in CACHE_DIRECTORY, so only the first build takes more than a moment. The analysis is a second
# layer; the image's tag ends with a checksum of its files, so that a changed analysis is a new image.
set -euo pipefail
umask 022
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cache=$1
registry=$2
work_dir=/opt/positive_pixel_count
packages=(python3-numpy python3-pil python3-minimal dash coreutils base-files)

say() { echo "build_image.sh: $*" >&2; }
die() { say "$@"; exit 1; }

for program in umoci skopeo dpkg-deb apt-get; do
  command -v "$program" >/dev/null || die "$program is missing: devstack/devstack install brings it."
done
mkdir -p "$cache"

download_packages() {
  : > "$cache/nothing-installed"
  mkdir -p "$cache/apt/archives/partial"
  apt-get -qq -o Dir::State::status="$cache/nothing-installed" -o Dir::Cache="$cache/apt" \
    -o APT::Install-Recommends=false -o APT::Sandbox::User=root -o Debug::NoLocking=1 \
    --download-only --yes install "${packages[@]}" >"$cache/apt.log" 2>&1
}

make_base() {
  local root=$cache/root package library
  rm -rf "$root" "$cache/base"
  mkdir -p "$root"/usr/{bin,sbin,lib,lib64}
  for library in bin sbin lib lib64; do ln -s "usr/$library" "$root/$library"; done
  if ! download_packages; then
    # The lists of packages are old or missing.
    apt-get -qq update >"$cache/apt.log" 2>&1 || true
    download_packages || die "apt-get cannot bring ${packages[*]}: $(tail -n 1 "$cache/apt.log")"
  fi
  for package in "$cache"/apt/archives/*.deb; do
    # Asked for by a maintainer script of another package only.
    case $package in */perl*|*/libperl*) continue ;; esac
    dpkg-deb --fsys-tarfile "$package" | tar --extract --directory="$root" --keep-directory-symlink \
      --exclude='./usr/share/man/*' --exclude='./usr/share/locale/*' --exclude='./usr/share/info/*' \
      --exclude='*/changelog*.gz' --exclude='./usr/lib/python3/dist-packages/numpy/*/tests'
  done
  # Debian chooses these by update-alternatives, which no maintainer script has run.
  for library in "$root"/usr/lib/*/blas/libblas.so.3 "$root"/usr/lib/*/lapack/liblapack.so.3; do
    [ -e "$library" ] && (cd "$(dirname "$library")/.." && ln -sf ./*/"${library##*/}" .)
  done
  mkdir -p "$root/etc"
  echo 'root:x:0:0:root:/root:/bin/sh' > "$root/etc/passwd"
  echo 'root:x:0:' > "$root/etc/group"
  # A first run: it shows that all is there, and leaves the byte code of what it imported.
  chroot "$root" /usr/bin/python3 -c 'import argparse, json, pathlib, warnings, numpy, PIL.Image, PIL.PngImagePlugin' ||
    die "Python does not run in $root."
  umoci init --layout "$cache/base"
  umoci new --image "$cache/base:latest"
  umoci insert --image "$cache/base:latest" "$root" / 2>"$cache/umoci.log" || die "umoci: $(tail -n 1 "$cache/umoci.log")"
  rm -rf "$root" "$cache/apt"
  touch "$cache/base.done"
}

if [ ! -e "$cache/base.done" ]; then
  say "unpacking Python, NumPy and Pillow from the machine's package source"
  make_base
fi

checksum=$(cd "$here/image" && find . -name __pycache__ -prune -o -type f -print0 | sort -z |
  xargs -0 sha256sum | sha256sum | cut -c 1-8)
reference=$registry/demo/positive-pixel-count:1.0-$checksum
if ! skopeo inspect --tls-verify=false "docker://$reference" >/dev/null 2>&1; then
  say "making and pushing $reference"
  scratch=$(mktemp -d "$cache/image.XXXXXX")
  trap 'rm -rf "$scratch"' EXIT
  cp -R "$cache/base" "$scratch/oci"
  mkdir "$scratch/files"
  (cd "$here/image" && tar --create --exclude=__pycache__ --exclude=./__init__.py .) |
    tar --extract --no-same-owner --directory="$scratch/files"
  chmod -R u=rwX,go=rX "$scratch/files"
  umoci insert --image "$scratch/oci:latest" "$scratch/files" "$work_dir"
  umoci config --image "$scratch/oci:latest" \
    --config.entrypoint ./entrypoint.py --config.workingdir "$work_dir" \
    --config.env PATH=/usr/bin:/bin --config.env LANG=C.UTF-8 --config.env PYTHONUNBUFFERED=1 \
    --config.env PYTHONDONTWRITEBYTECODE=1 --config.env OPENBLAS_NUM_THREADS=1 \
    --config.label 'description=Counts pixels that DAB stained brown'
  skopeo copy --insecure-policy --quiet --dest-tls-verify=false \
    "oci:$scratch/oci:latest" "docker://$reference" >"$cache/push.log" 2>&1 ||
    die "cannot push $reference: $(tail -n 1 "$cache/push.log")"
fi
echo "$reference"
