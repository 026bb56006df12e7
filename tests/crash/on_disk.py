#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""A second implementation of the cache's format, written from Documentation/on-disk.rst alone.

on_disk.py DISK: prints the records that the next open would load, as `vmdedup cache dump` does.
If the two differ, the page is wrong, or one of them.
"""

import struct
import sys
import uuid

PAGE = 4096


class Damaged(Exception):
    pass


def crc_table():
    table = []
    for n in range(256):
        for _ in range(8):
            n = n >> 1 ^ (0x82F63B78 if n & 1 else 0)
        table.append(n)
    return table


CRC_TABLE = crc_table()


def crc32c(data):
    """Initial value of ones, no final inversion."""
    crc = 0xFFFFFFFF
    for b in data:
        crc = crc >> 8 ^ CRC_TABLE[(crc ^ b) & 0xFF]
    return crc


def zeroed(data, offset, length=4):
    return data[:offset] + bytes(length) + data[offset + length:]


class Cache:
    def __init__(self, path):
        with open(path, "rb") as f:
            self.disk = f.read()
        self.read_superblock()
        self.read_journal()
        self.read_directory()

    # -- superblock ---------------------------------------------------------------------------

    def decode_superblock(self, offset):
        b = self.disk[offset:offset + 512]
        if b[:8] != b"VMDEDUPC" or crc32c(zeroed(b, 8)) != struct.unpack_from("<I", b, 8)[0]:
            return None
        s = {"cache_uuid": b[48:64]}
        s["version"], s["generation"] = struct.unpack_from("<IQ", b, 12)
        s["features_incompat"], = struct.unpack_from("<Q", b, 40)
        s["incarnation_nr"], s["block_shift"] = struct.unpack_from("<II", b, 96)
        (s["device_bytes"], s["journal_start"], s["journal_pages"], s["append_pages"],
         s["table_start"], s["dir_start"], s["data_start"], s["nr_slots"], s["table_pages"],
         s["dir_pages"], s["nr_volumes"], _, s["journal_seq"]) = struct.unpack_from(
             "<QQIIQQQQIIIIQ", b, 104)
        if s["version"] != 1 or s["features_incompat"]:
            raise Damaged("a newer version")
        return s

    def read_superblock(self):
        a = self.decode_superblock(4096)
        size = a["device_bytes"] if a else len(self.disk)
        b = self.decode_superblock(size // PAGE * PAGE - PAGE)
        found = [s for s in (a, b) if s]
        if not found:
            raise Damaged("no superblock")
        self.s = s = max(found, key=lambda x: x["generation"])
        # The areas follow from the numbers.
        bitmap = (1 << s["block_shift"]) // 512 // 8
        self.slot_bytes = 40 + max(8, bitmap)
        self.bitmap_bytes = bitmap
        self.per_page = 4064 // self.slot_bytes
        self.volume_pages = -(-s["nr_volumes"] // 10)
        want = {"journal_start": 1 << 20, "nr_volumes": 4096}
        want["table_start"] = s["journal_start"] + s["journal_pages"] * PAGE
        want["table_pages"] = self.volume_pages + -(-s["nr_slots"] // self.per_page)
        want["dir_start"] = s["table_start"] + 2 * s["table_pages"] * PAGE
        want["dir_pages"] = -(-s["table_pages"] // 254)
        end = s["dir_start"] + 2 * s["dir_pages"] * PAGE
        want["data_start"] = -(-end // (1 << 20)) * (1 << 20)
        for name, value in want.items():
            if s[name] != value:
                raise Damaged("%s is %d, not %d" % (name, s[name], value))

    # -- journal ------------------------------------------------------------------------------

    def ring(self, page, pages):
        at = self.s["journal_start"] + page * PAGE
        return self.disk[at:at + pages * PAGE]

    def decode_head(self, page):
        b = self.ring(page, 1)[:128]
        if b[:8] != b"ddAppend" or b[16:32] != self.s["cache_uuid"]:
            return None
        if crc32c(zeroed(b, 8, 8)) != struct.unpack_from("<I", b, 8)[0]:
            return None
        h = {"page": page, "crc": struct.unpack_from("<I", b, 12)[0]}
        (h["seq"], h["prev_crc"], h["incarnation_nr"], h["kind"], h["pages"], h["nr_items"], _,
         h["checkpoint_seq"], h["replay_seq"], h["checkpoint_page"],
         h["replay_page"]) = struct.unpack_from("<QIIIIIIQQII", b, 48)
        return h if page + h["pages"] <= self.s["journal_pages"] else None

    def whole(self, h):
        return crc32c(zeroed(self.ring(h["page"], h["pages"]), 12)) == h["crc"]

    def items(self, h):
        """(bytes of a page, where its items begin), for each page of an append."""
        for i in range(h["pages"]):
            b = self.ring(h["page"] + i, 1)
            if i and (b[:8] != b"ddCon..." or struct.unpack_from("<Q", b, 8)[0] != h["seq"]):
                raise Damaged("append %d, page %d" % (h["seq"], i))
            yield b, 16 if i else 128

    def find_tail(self, heads):
        last = max(h["seq"] for h in heads)
        for seq in (last, last - 1):
            good = [h for h in heads if h["seq"] == seq and self.whole(h)]
            if len(good) == 1:
                if seq < self.s["journal_seq"]:
                    break
                return good[0]
        raise Damaged("the journal's tail")

    def read_journal(self):
        heads = [h for h in map(self.decode_head, range(self.s["journal_pages"])) if h]
        self.changes = {}
        self.root = None
        tail = self.find_tail(heads)
        follows = tail["replay_page"]
        prev_crc = None
        for seq in range(tail["replay_seq"], tail["seq"] + 1):
            for h in heads:
                if h["seq"] == seq and self.whole(h) and \
                   (prev_crc is None and h["page"] == follows or
                    prev_crc is not None and h["prev_crc"] == prev_crc and
                    h["page"] in (follows % self.s["journal_pages"], 0)):
                    break
            else:
                raise Damaged("append %d" % seq)
            prev_crc = h["crc"]
            follows = h["page"] + h["pages"]
            if h["kind"] == 1:
                self.take_changes(h)
            elif seq == tail["checkpoint_seq"]:
                self.take_root(h)
        if self.root is None:
            raise Damaged("no checkpoint")

    def take_changes(self, h):
        left = h["nr_items"]
        for b, at in self.items(h):
            while left and at + 16 <= PAGE and b[at]:
                kind, _, length, _, index = struct.unpack_from("<BBHIQ", b, at)
                full = 384 if kind == 2 else self.slot_bytes
                rec = b[at + 16:at + 16 + length]
                self.changes[kind, index] = rec + bytes(full - length)
                at += 16 + length
                left -= 1
        if left:
            raise Damaged("append %d has fewer changes than it says" % h["seq"])

    def take_root(self, h):
        entries = []
        for b, at in self.items(h):
            while len(entries) < h["nr_items"] and at + 16 <= PAGE:
                entries.append(struct.unpack_from("<QII", b, at))
                at += 16
        if len(entries) != self.s["dir_pages"]:
            raise Damaged("the root")
        self.root = entries

    # -- tables -------------------------------------------------------------------------------

    def page(self, start, pages, magic, nr, entry):
        seq, crc, place = entry
        if not seq:
            return bytes(PAGE)
        at = start + (place * pages + nr) * PAGE
        b = self.disk[at:at + PAGE]
        number, written = struct.unpack_from("<QQ", b, 8)
        if (b[:4] != magic or crc32c(zeroed(b, 4)) != crc or
                struct.unpack_from("<I", b, 4)[0] != crc or number != nr or written != seq or
                b[24:32] != self.s["cache_uuid"][:8]):
            raise Damaged("%s page %d" % (magic.decode(), nr))
        return b

    def read_directory(self):
        self.directory = []
        for nr, entry in enumerate(self.root):
            b = self.page(self.s["dir_start"], self.s["dir_pages"], b"ddir", nr, entry)
            self.directory += [struct.unpack_from("<QII", b, 32 + 16 * i) for i in range(254)]

    def record(self, kind, index):
        if (kind, index) in self.changes:
            return self.changes[kind, index]
        per, size = (10, 384) if kind == 2 else (self.per_page, self.slot_bytes)
        nr = index // per + (0 if kind == 2 else self.volume_pages)
        b = self.page(self.s["table_start"], self.s["table_pages"], b"dtab", nr,
                      self.directory[nr])
        at = 32 + index % per * size
        return b[at:at + size]

    # -- records ------------------------------------------------------------------------------

    def volumes(self):
        for index in range(self.s["nr_volumes"]):
            r = self.record(2, index)
            ident, = struct.unpack_from("<Q", r)
            if not ident:
                continue
            epoch, size, counter, committed, flags = struct.unpack_from("<QQQQI", r, 56)
            yield ("volume %d id %d image %s name %s size %d root %s epoch %d cut %d "
                   "committed %d flags 0x%x" %
                   (index, ident, uuid.UUID(bytes=r[8:24]), r[96:352].split(b"\0")[0].decode(),
                    size, r[24:56].hex(), epoch, counter, committed, flags))

    def slots(self):
        for index in range(self.s["nr_slots"]):
            r = self.record(1, index)
            seq, state, flags = struct.unpack_from("<QBB", r)
            if state == 1:
                yield "slot %d seq %d clean %s" % (index, seq, r[16:48].hex())
            elif state == 2:
                volume, block, cut = struct.unpack_from("<QQQ", r, 16)
                valid = sum(bin(x).count("1") for x in r[40:40 + self.bitmap_bytes])
                yield ("slot %d seq %d dirty volume %d block %d cut %d sectors %d%s%s" %
                       (index, seq, volume, block, cut, valid,
                        " base-zero" if flags & 1 else "", " complete" if flags & 2 else ""))


def main():
    if len(sys.argv) != 2:
        sys.exit("usage: on_disk.py DISK")
    try:
        cache = Cache(sys.argv[1])
        for line in list(cache.volumes()) + list(cache.slots()):
            print(line)
    except Damaged as e:
        sys.exit("damaged: %s" % e)


main()
