// SPDX-License-Identifier: GPL-2.0-or-later
/* Configuration files. */
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/config.h"
#include "fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	int fd = memfd_create("config", MFD_CLOEXEC);
	struct config c;
	struct error err = { 0 };
	char path[64];

	FUZZ_CHECK(fd >= 0 && write(fd, data, size) == (ssize_t)size);
	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	if (config_load(&c, path, &err))
		FUZZ_CHECK(err.code < 0 && *err.text);
	else
		FUZZ_CHECK(c.meta && c.store && c.run && c.data_dir && c.host);
	config_free(&c);
	close(fd);
	return 0;
}

size_t fuzz_seed(size_t n, uint8_t *out, size_t room)
{
	static const char *const seeds[] = {
		"# all of it\n[cluster]\nmeta = tcp://10.0.0.1:7401,tcp://10.0.0.2:7401\n"
		"[store]\nstore=/srv ; here\nrun = /run/d\n[meta]\nlisten = tcp://0.0.0.0:7401\n"
		"[data]\nreserve = 64M\ncapacity=1.5TiB\nhost = a\nrack = b\n"
		"[agent]\ncache = /dev/mapper/cache0\npush_age = 300\npush_bytes = 1G\n"
		"[curve]\nsecret = /k\nservers = /s\nclients = /c\n",
		"[agent]\ncache_file = /tmp/c\ncache_file_size = 1G\n",
		"\xef\xbb\xbf[store]\r\n  store = /a\r\n\r\n",
	};

	if (n >= sizeof(seeds) / sizeof(seeds[0]))
		return 0;
	FUZZ_CHECK(strlen(seeds[n]) <= room);
	memcpy(out, seeds[n], strlen(seeds[n]));
	return strlen(seeds[n]);
}
