// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Who may connect: ZeroMQ asks at each CURVE handshake (RFC 27), and this thread answers from
 * the folder of public keys, which is read again when it has changed.
 */
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <czmq.h>

#include "base/log.h"
#include "net/internal.h"

#define ZAP_ENDPOINT "inproc://zeromq.zap.01"
#define ZAP_FIELDS   7

/* Frames of a request */
enum { ZAP_VERSION, ZAP_ID, ZAP_DOMAIN, ZAP_ADDRESS, ZAP_IDENTITY, ZAP_MECHANISM, ZAP_KEY };

struct zap {
	void *socket;
	pthread_mutex_t lock; /* guards @certs */
	zcertstore_t *certs;
	int stop_fd;
	pthread_t thread;
};

static bool part_is(const zmq_msg_t *part, const char *text)
{
	return zmq_msg_size(part) == strlen(text) &&
	       !memcmp(zmq_msg_data((zmq_msg_t *)part), text, strlen(text));
}

/* Copies a frame's text for the log. */
static const char *part_text(const zmq_msg_t *part, char *buf, size_t size)
{
	size_t n = zmq_msg_size(part) < size - 1 ? zmq_msg_size(part) : size - 1;

	memcpy(buf, zmq_msg_data((zmq_msg_t *)part), n);
	buf[n] = '\0';
	return buf;
}

static bool knows(struct zap *z, const char *key)
{
	bool known;

	pthread_mutex_lock(&z->lock);
	known = zcertstore_lookup(z->certs, key);
	pthread_mutex_unlock(&z->lock);
	return known;
}

bool zap_knows(struct zap *z, const uint8_t key[32])
{
	char text[41];

	return zmq_z85_encode(text, key, 32) && knows(z, text);
}

static bool is_allowed(struct zap *z, const struct net_parts *p, char key[41])
{
	char address[64];

	*key = '\0';
	if (p->nr != ZAP_FIELDS || p->too_many || !part_is(&p->msgs[ZAP_VERSION], "1.0") ||
	    !part_is(&p->msgs[ZAP_MECHANISM], "CURVE") || zmq_msg_size(&p->msgs[ZAP_KEY]) != 32)
		return false;
	zmq_z85_encode(key, zmq_msg_data(&p->msgs[ZAP_KEY]), 32);
	if (knows(z, key))
		return true;
	log_warn("refused a connection from %s: its public key %s is not in the folder of "
		 "[curve] clients",
		 part_text(&p->msgs[ZAP_ADDRESS], address, sizeof(address)), key);
	return false;
}

static void answer(struct zap *z, const struct net_parts *p)
{
	char key[41];
	bool allowed = is_allowed(z, p, key);
	zmq_msg_t id;

	zmq_msg_init(&id);
	if (p->nr > ZAP_ID)
		zmq_msg_copy(&id, &p->msgs[ZAP_ID]);
	zmq_send(z->socket, "1.0", 3, ZMQ_SNDMORE);
	if (zmq_msg_send(&id, z->socket, ZMQ_SNDMORE) < 0)
		zmq_msg_close(&id);
	zmq_send(z->socket, allowed ? "200" : "400", 3, ZMQ_SNDMORE);
	zmq_send(z->socket, allowed ? "OK" : "not in [curve] clients", allowed ? 2 : 22,
		 ZMQ_SNDMORE);
	zmq_send(z->socket, key, allowed ? 40 : 0, ZMQ_SNDMORE);
	zmq_send(z->socket, "", 0, 0);
}

static void *zap_main(void *arg)
{
	struct zap *z = arg;
	struct net_parts parts = { 0 };
	zmq_pollitem_t items[] = {
		{ .socket = z->socket, .events = ZMQ_POLLIN },
		{ .fd = z->stop_fd, .events = ZMQ_POLLIN },
	};

	for (;;) {
		if (zmq_poll(items, 2, -1) < 0 && errno != EINTR)
			break;
		if (items[1].revents)
			break;
		while (!net_parts_recv(z->socket, ZAP_FIELDS, &parts)) {
			answer(z, &parts);
			net_parts_clear(&parts);
		}
	}
	net_parts_free(&parts);
	return NULL;
}

static int start_thread(struct zap *z)
{
	sigset_t all, old;
	int r;

	/* Signals belong to the daemon's own threads. */
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	r = pthread_create(&z->thread, NULL, zap_main, z);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	return -r;
}

struct zap *zap_start(void *zmq, const char *clients_dir, struct error *err)
{
	struct zap *z;

	if (access(clients_dir, R_OK | X_OK)) {
		error_set(err, -errno, "the folder of [curve] clients, %s: %s", clients_dir,
			  strerror(errno));
		return NULL;
	}
	z = calloc(1, sizeof(*z));
	if (!z)
		goto out_of_memory;
	pthread_mutex_init(&z->lock, NULL);
	z->stop_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	z->certs = zcertstore_new(clients_dir);
	z->socket = zmq_socket(zmq, ZMQ_REP);
	if (z->stop_fd < 0 || !z->certs || !z->socket)
		goto free_zap;
	if (zmq_bind(z->socket, ZAP_ENDPOINT) || start_thread(z))
		goto free_zap;
	return z;

free_zap:
	if (z->socket)
		zmq_close(z->socket);
	zcertstore_destroy(&z->certs);
	if (z->stop_fd >= 0)
		close(z->stop_fd);
	free(z);
out_of_memory:
	error_set(err, -ENOMEM, "cannot start the thread that checks keys: %s", strerror(errno));
	return NULL;
}

void zap_stop(struct zap *z)
{
	uint64_t one = 1;

	if (!z)
		return;
	if (write(z->stop_fd, &one, sizeof(one)) != sizeof(one))
		log_error("cannot stop the thread that checks keys: %s", strerror(errno));
	pthread_join(z->thread, NULL);
	zmq_close(z->socket);
	zcertstore_destroy(&z->certs);
	pthread_mutex_destroy(&z->lock);
	close(z->stop_fd);
	free(z);
}
