// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Who may connect: ZeroMQ asks at each CURVE handshake (RFC 27), and this thread answers from
 * the folder of public keys, which is read again when it has changed. Two folders in it, ROLE_FOLDERS,
 * say whose keys may more than a host's (net/role.h). Their being there is what counts, not what they
 * hold: the last administrator's key that goes must not make everybody one.
 */
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/stat.h>
#include <unistd.h>

#include <czmq.h>

#include "base/log.h"
#include "net/internal.h"

#define ZAP_ENDPOINT "inproc://zeromq.zap.01"
#define ZAP_FIELDS   7

/* Frames of a request */
enum { ZAP_VERSION, ZAP_ID, ZAP_DOMAIN, ZAP_ADDRESS, ZAP_IDENTITY, ZAP_MECHANISM, ZAP_KEY };

/* A folder of keys, with those of the folders in it. */
struct keys {
	char *path;
	struct timespec changed; /* the folder itself, when @certs was opened */
	zcertstore_t *certs;	 /* NULL: no such folder */
};

/* The least of them that a key may be in comes last. */
enum { ROLE_ADMIN, ROLE_DATA, ROLE_FOLDERS };
static const char *const role_folders[ROLE_FOLDERS] = { "/admin", "/data" };
static const enum net_role folder_roles[ROLE_FOLDERS] = { NET_ROLE_ADMIN, NET_ROLE_DATA };

struct zap {
	void *socket;
	pthread_mutex_t lock; /* guards the keys */
	struct keys all, roles[ROLE_FOLDERS];
	atomic_bool open; /* as last looked: no folder of a role is there */
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

/* The store by itself sees the number, the sizes and the newest second of its files: not that one
 * key was put in another's place. */
static bool keys_look(struct keys *k)
{
	struct stat st;

	if (stat(k->path, &st) || !S_ISDIR(st.st_mode)) {
		zcertstore_destroy(&k->certs);
		return false;
	}
	if (k->certs && (st.st_mtim.tv_sec != k->changed.tv_sec ||
			 st.st_mtim.tv_nsec != k->changed.tv_nsec))
		zcertstore_destroy(&k->certs);
	if (!k->certs) {
		k->changed = st.st_mtim;
		k->certs = zcertstore_new(k->path);
	}
	return true;
}

static bool keys_have(struct keys *k, const char *key)
{
	return keys_look(k) && k->certs && zcertstore_lookup(k->certs, key);
}

/* Under the lock. */
static bool look_for_roles(struct zap *z)
{
	bool any = false;

	for (size_t i = 0; i < ROLE_FOLDERS; i++)
		any |= keys_look(&z->roles[i]);
	atomic_store(&z->open, !any);
	return any;
}

static enum net_role role_of(struct zap *z, const char *key)
{
	enum net_role role = NET_ROLE_NONE;

	pthread_mutex_lock(&z->lock);
	if (keys_have(&z->all, key)) {
		role = look_for_roles(z) ? NET_ROLE_HOST : NET_ROLE_ADMIN;
		for (size_t i = 0; role == NET_ROLE_HOST && i < ROLE_FOLDERS; i++)
			if (keys_have(&z->roles[i], key))
				role = folder_roles[i];
	}
	pthread_mutex_unlock(&z->lock);
	return role;
}

enum net_role zap_role(struct zap *z, const uint8_t key[32])
{
	char text[41];

	return zmq_z85_encode(text, key, 32) ? role_of(z, text) : NET_ROLE_NONE;
}

bool zap_is_open(struct zap *z)
{
	return atomic_load(&z->open);
}

static bool is_allowed(struct zap *z, const struct net_parts *p, char key[41])
{
	char address[64];

	*key = '\0';
	if (p->nr != ZAP_FIELDS || p->too_many || !part_is(&p->msgs[ZAP_VERSION], "1.0") ||
	    !part_is(&p->msgs[ZAP_MECHANISM], "CURVE") || zmq_msg_size(&p->msgs[ZAP_KEY]) != 32)
		return false;
	zmq_z85_encode(key, zmq_msg_data(&p->msgs[ZAP_KEY]), 32);
	if (role_of(z, key))
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

static int keys_name(struct zap *z, const char *dir)
{
	z->all.path = strdup(dir);
	for (size_t i = 0; z->all.path && i < ROLE_FOLDERS; i++)
		if (asprintf(&z->roles[i].path, "%s%s", dir, role_folders[i]) < 0) {
			z->roles[i].path = NULL;
			return -ENOMEM;
		}
	return z->all.path ? 0 : -ENOMEM;
}

static void keys_free(struct zap *z)
{
	zcertstore_destroy(&z->all.certs);
	free(z->all.path);
	for (size_t i = 0; i < ROLE_FOLDERS; i++) {
		zcertstore_destroy(&z->roles[i].certs);
		free(z->roles[i].path);
	}
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
	z->socket = zmq_socket(zmq, ZMQ_REP);
	if (z->stop_fd < 0 || !z->socket || keys_name(z, clients_dir))
		goto free_zap;
	look_for_roles(z);
	if (zmq_bind(z->socket, ZAP_ENDPOINT) || start_thread(z))
		goto free_zap;
	return z;

free_zap:
	if (z->socket)
		zmq_close(z->socket);
	keys_free(z);
	pthread_mutex_destroy(&z->lock);
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
	keys_free(z);
	pthread_mutex_destroy(&z->lock);
	close(z->stop_fd);
	free(z);
}
