#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# Bad input: a clear error, the right exit status, and nothing changed.

# shellcheck source=tests/cluster/test_common.sh
. "${0%/*}/test_common.sh"

new_cluster >/dev/null
make_image "$images/a.raw" 12
vmdedup image import "$images/a.raw" a >/dev/null
long=$(printf 'x%.0s' {1..300})

image_names() {
	local verb
	expect_status 4 "image \"?a\"?.* already|already.* a" vmdedup image import "$images/a.raw" a
	expect_status 1 "cannot be an image's name" vmdedup image import "$images/a.raw" ""
	expect_status 1 "cannot be an image's name" vmdedup image import "$images/a.raw" "$long"
	expect_status 1 "cannot be an image's name" vmdedup image import "$images/a.raw" "a/b"
	expect_status 1 "cannot be an image's name" vmdedup image clone a "$long"
	expect_status 1 "cannot be an image's name" vmdedup image clone a ../b
	expect_status 1 "cannot be an image's name" vmdedup image rename a ""
	expect_status 4 "already" vmdedup image clone a a
	for verb in "show" "rm" "verify" "history" "snapshot"; do
		expect_status 3 "no image" vmdedup image $verb missing
		expect_status 1 "cannot be an image's name" vmdedup image $verb ""
		expect_status 1 "cannot be an image's name" vmdedup image $verb "$long"
		expect_status 1 "cannot be an image's name" vmdedup image $verb a/b
	done
	expect_status 3 "no image" vmdedup image clone missing b
	expect_status 3 "no image" vmdedup image rename missing b
	expect_status 3 "version" vmdedup image show a --version 77
	name255=$(printf 'y%.0s' {1..255})
	vmdedup image import "$images/a.raw" "$name255"
	vmdedup image rm "$name255"
}

sources() {
	expect_status 3 "cannot open .*No such file" vmdedup image import "$images/missing" b
	expect_status 1 "is a directory" vmdedup image import "$images" b
	truncate -s 1000 "$images/odd"
	: >"$images/empty"
	expect_status 1 "not a multiple of 512" vmdedup image import "$images/odd" b
	expect_status 1 "is empty" vmdedup image import "$images/empty" b
	expect_status 1 "neither a file nor a block device" vmdedup image import /dev/null b
	expect_status 3 "cannot connect" vmdedup image import "nbd+unix:///?socket=$TEST_TMP/none" b
	expect_status 3 "cannot open" vmdedup image verify a --against "$images/missing"
}

unreadable() {
	local as=()
	if [ "$(id -u)" = 0 ]; then
		# Root may read anything unless it has no capabilities.
		command -v setpriv >/dev/null || exit 4
		as=(setpriv --bounding-set -all --inh-caps -all --reuid 65534 --clear-groups)
		chmod 755 "$TEST_TMP" "$images" "${TEST_TMP%/*}"
	fi
	truncate -s 1M "$images/locked"
	chmod 0 "$images/locked"
	expect_status 1 "cannot open .*Permission denied" \
		"${as[@]}" "$(command -v vmdedup)" --conf /dev/null image import "$images/locked" b
}

corrupt_qcow2() {
	command -v qemu-img >/dev/null || exit 4
	{ printf 'QFI\373'; head -c 65532 /dev/urandom; } >"$images/bad.qcow2"
	expect_status 1 "damaged qcow2" vmdedup image import "$images/bad.qcow2" b
	# Cut off: what is missing must not be imported as zeros.
	qemu-img convert -f raw -O qcow2 "$images/a.raw" "$images/cut.qcow2"
	truncate -s 3M "$images/cut.qcow2"
	expect_status 1 "damaged qcow2" vmdedup image import "$images/cut.qcow2" b
	# Not what the user says it is: qemu-nbd's own words.
	expect_status 1 "qemu-nbd:" vmdedup image import --format vmdk "$images/a.raw" b
}

# A bad block in the middle of an otherwise good source.
unreadable_sector() {
	command -v qemu-nbd >/dev/null || exit 4
	start qemu-nbd --read-only --socket="$TEST_TMP/bad" --image-opts \
		"driver=raw,file.driver=blkdebug,file.inject-error.0.event=read_aio,file.inject-error.0.sector=16384,file.image.driver=file,file.image.filename=$images/a.raw"
	wait_until 30 test -S "$TEST_TMP/bad"
	expect_status 1 "cannot read" vmdedup image import "nbd+unix:///?socket=$TEST_TMP/bad" b
}

no_cluster() {
	new_store
	printf '[store]\nstore = %s/none\nrun = %s/run\n' "$store" "$store" >"$VMDEDUP_CONF"
	expect_status 3 "vmdedup cluster init" vmdedup image import "$images/a.raw" b
	expect_status 3 "vmdedup cluster init" vmdedup image ls
	printf '[cluster]\nmeta = tcp://127.0.0.1:%s\n' "$(free_port)" >"$VMDEDUP_CONF"
	expect_status 5 "no connection|does not answer" timeout 60 vmdedup image ls
	printf '[store]\nnonsense = 1\n' >"$VMDEDUP_CONF"
	expect_status 1 "vmdedup.conf:2: unknown key" vmdedup image ls
}

init() {
	expect_status 4 "" vmdedup cluster init
	new_store
	printf '[store]\nstore = %s/store\nrun = %s/run\n' "$store" "$store" >"$VMDEDUP_CONF"
	expect_status 2 "power of two" vmdedup cluster init --block-size 100K
	expect_status 2 "power of two" vmdedup cluster init --block-size 2K
	expect_status 2 "power of two" vmdedup cluster init --block-size 2M
	expect_status 2 "not a size" vmdedup cluster init --block-size big
	expect_status 2 "none of sha256, sha1, md5" vmdedup cluster init --fingerprint crc32
	expect_status 2 "replicas" vmdedup cluster init --replicas 9
	expect_status 2 "min-copies" vmdedup cluster init --replicas 2 --min-copies 3
	expect_status 2 "min-copies" vmdedup cluster init --min-copies 2
	expect_status 0 "warning: collisions of md5" vmdedup cluster init --fingerprint md5
}

nothing_changed() {
	[ "$(json 'map(.name) | join(" ")' vmdedup image ls)" = a ]
	[ "$(json .pushes vmdedup cluster info)" = 0 ]
	vmdedup image verify a --against "$images/a.raw"
}

run_case "names of images" image_names
run_case "sources that are none" sources
run_case "an unreadable source" unreadable
run_case "a corrupt qcow2" corrupt_qcow2
run_case "a sector that cannot be read" unreadable_sector
run_case "no cluster, no server, no configuration" no_cluster
run_case "cluster init" init
run_case "nothing has changed" nothing_changed
finish
