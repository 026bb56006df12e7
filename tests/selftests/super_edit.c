// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * super_edit DISK A|B version|features|crc
 *
 * Changes a superblock of a cache: a newer version, or an unknown incompatible feature, under a
 * good CRC; or a bad CRC.
 */
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static uint32_t crc32c(const uint8_t *p, size_t len)
{
	uint32_t crc = ~0U;

	while (len--) {
		crc ^= *p++;
		for (int k = 0; k < 8; k++)
			crc = crc & 1 ? crc >> 1 ^ 0x82f63b78 : crc >> 1;
	}
	return crc;
}

int main(int argc, char **argv)
{
	uint8_t sb[512];
	uint32_t crc;
	off_t at = 4096;
	int fd;

	if (argc != 4) {
		fprintf(stderr, "usage: super_edit DISK A|B version|features|crc\n");
		return 2;
	}
	fd = open(argv[1], O_RDWR);
	if (fd < 0) {
		perror(argv[1]);
		return 1;
	}
	if (*argv[2] == 'B')
		at = lseek(fd, 0, SEEK_END) / 4096 * 4096 - 4096;
	if (pread(fd, sb, sizeof(sb), at) != sizeof(sb) || memcmp(sb, "VMDEDUPC", 8)) {
		fprintf(stderr, "%s has no superblock %s\n", argv[1], argv[2]);
		return 1;
	}
	if (!strcmp(argv[3], "version"))
		sb[12]++;
	else if (!strcmp(argv[3], "features"))
		sb[47] |= 0x80;
	memset(sb + 8, 0, 4);
	crc = crc32c(sb, sizeof(sb));
	if (!strcmp(argv[3], "crc"))
		crc = ~crc;
	for (int i = 0; i < 4; i++)
		sb[8 + i] = crc >> 8 * i;
	if (pwrite(fd, sb, sizeof(sb), at) != sizeof(sb) || fsync(fd)) {
		perror(argv[1]);
		return 1;
	}
	close(fd);
	return 0;
}
