// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * What p2p is measured against: the blocks of a file over ZeroMQ alone, tcp with CURVE on the loopback
 * interface, from one process to another, each digested by SHA-256 when it has come.
 *
 *   transfer FILE     prints milliseconds, and those of processor time of both
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <fcntl.h>
#include <unistd.h>
#include <zmq.h>
#include "base/clock.h"
#include "base/fingerprint.h"

#define BLOCK (256 << 10)
#define CHECK(x)                                                                                   \
	do {                                                                                       \
		if (!(x)) {                                                                        \
			fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #x);                    \
			exit(1);                                                                   \
		}                                                                                  \
	} while (0)

static void keep(void *data, void *hint)
{
}

static void serve(int out, const char *secret, const uint8_t *data, size_t size)
{
	void *ctx = zmq_ctx_new(), *socket = zmq_socket(ctx, ZMQ_DEALER);
	char bound[256], c;
	size_t len = sizeof(bound), at;
	int yes = 1, hwm = 16;

	zmq_setsockopt(socket, ZMQ_SNDHWM, &hwm, sizeof(hwm));
	CHECK(!zmq_setsockopt(socket, ZMQ_CURVE_SERVER, &yes, sizeof(yes)));
	CHECK(!zmq_setsockopt(socket, ZMQ_CURVE_SECRETKEY, secret, 41));
	CHECK(!zmq_bind(socket, "tcp://127.0.0.1:*"));
	CHECK(!zmq_getsockopt(socket, ZMQ_LAST_ENDPOINT, bound, &len));
	CHECK(write(out, bound, sizeof(bound)) == sizeof(bound));
	CHECK(zmq_recv(socket, &c, 1, 0) == 1);
	for (at = 0; at + BLOCK <= size; at += BLOCK) {
		zmq_msg_t msg;

		zmq_msg_init_data(&msg, (void *)(data + at), BLOCK, keep, NULL);
		CHECK(zmq_msg_send(&msg, socket, 0) == BLOCK);
	}
	CHECK(zmq_recv(socket, &c, 1, 0) == 1);
	_exit(0);
}

static uint64_t cpu_ms(int who)
{
	struct rusage u;

	getrusage(who, &u);
	return (uint64_t)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) * 1000 +
	       (uint64_t)(u.ru_utime.tv_usec + u.ru_stime.tv_usec) / 1000;
}

int main(int argc, char **argv)
{
	char public_key[41], secret_key[41], own_public[41], own_secret[41], bound[256];
	struct fp_hasher *hasher = fp_hasher_new(FP_SHA256, NULL, 0);
	void *ctx, *socket;
	uint64_t began, took;
	struct stat st;
	uint8_t *data;
	size_t at;
	struct fp fp;
	int fd, p[2], hwm = 16;
	pid_t pid;

	CHECK(argc == 2 && (fd = open(argv[1], O_RDONLY)) >= 0 && !fstat(fd, &st));
	data = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_SHARED | MAP_POPULATE, fd, 0);
	CHECK(data != MAP_FAILED && hasher && !pipe(p));
	zmq_curve_keypair(public_key, secret_key);
	pid = fork();
	if (!pid)
		serve(p[1], secret_key, data, (size_t)st.st_size);
	CHECK(read(p[0], bound, sizeof(bound)) == sizeof(bound));
	ctx = zmq_ctx_new();
	socket = zmq_socket(ctx, ZMQ_DEALER);
	zmq_curve_keypair(own_public, own_secret);
	zmq_setsockopt(socket, ZMQ_RCVHWM, &hwm, sizeof(hwm));
	CHECK(!zmq_setsockopt(socket, ZMQ_CURVE_SERVERKEY, public_key, 41));
	CHECK(!zmq_setsockopt(socket, ZMQ_CURVE_PUBLICKEY, own_public, 41));
	CHECK(!zmq_setsockopt(socket, ZMQ_CURVE_SECRETKEY, own_secret, 41));
	CHECK(!zmq_connect(socket, bound));
	CHECK(zmq_send(socket, "x", 1, 0) == 1);
	began = clock_mono_ns();
	for (at = 0; at + BLOCK <= (size_t)st.st_size; at += BLOCK) {
		zmq_msg_t msg;

		zmq_msg_init(&msg);
		CHECK(zmq_msg_recv(&msg, socket, 0) == BLOCK);
		fp_hash(hasher, zmq_msg_data(&msg), BLOCK, &fp);
		zmq_msg_close(&msg);
	}
	took = (clock_mono_ns() - began) / 1000000;
	CHECK(zmq_send(socket, "x", 1, 0) == 1);
	waitpid(pid, NULL, 0);
	printf("%llu %llu\n", (unsigned long long)took,
	       (unsigned long long)(cpu_ms(RUSAGE_SELF) + cpu_ms(RUSAGE_CHILDREN)));
	return 0;
}
