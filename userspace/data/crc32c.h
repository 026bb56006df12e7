/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef VMDEDUP_DATA_CRC32C_H
#define VMDEDUP_DATA_CRC32C_H

#include <stddef.h>
#include <stdint.h>

/* CRC-32C (Castagnoli), with the processor's instruction where there is one. @crc: 0, or the
 * result for the bytes before, so that pieces chain. Thread-safe. */
uint32_t crc32c(uint32_t crc, const void *data, size_t len);
/* The same without the instruction: what tests compare with. */
uint32_t crc32c_portable(uint32_t crc, const void *data, size_t len);

#endif
