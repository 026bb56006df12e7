// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Sources that speak NBD: a server named by a URI, or a qemu-nbd of our own for the formats that
 * QEMU knows. Ours gets a listening socket in a private folder (the protocol of systemd's socket
 * activation: nothing to wait for, no window in which another could connect first), serves
 * read-only, and ends with the connection, or with us.
 */
#include <errno.h>
#include <fcntl.h>
#include <libnbd.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>
#include "base/cleanup.h"
#include "blockio/source.h"

#define QEMU_NBD     "qemu-nbd"
#define QEMU_IMG     "qemu-img"
#define STATUS_MAX   (1ULL << 30) /* bytes that one BLOCK_STATUS asks about */
#define MAX_EXTENTS  4096
#define MAX_READ     (4U << 20)
#define SAID_MAX     400

extern char **environ;

struct extent {
	uint64_t end;
	bool data;
};

struct nbd {
	struct nbd_handle *h;
	pthread_mutex_t lock; /* guards h: libnbd runs one synchronous command at a time */
	char *what;
	uint64_t size;
	bool allocation; /* the server tells which parts are zeros */
	struct extent extents[MAX_EXTENTS];
	size_t nr_extents;
	uint64_t extents_start;
	pid_t child; /* our qemu-nbd, or 0 */
	int said_fd; /* what it writes to stderr */
	char dir[32];
};

/* ---- what the child said ---- */

/* The last lines of it, on one line. */
static void said(int fd, char text[SAID_MAX])
{
	size_t n = 0;
	ssize_t got;

	while (n < SAID_MAX - 1 && (got = read(fd, text + n, SAID_MAX - 1 - n)) > 0)
		n += got;
	text[n] = '\0';
	while (n && text[n - 1] == '\n')
		text[--n] = '\0';
	for (char *p = text; *p; p++)
		if (*p == '\n' || *p == '\r')
			*p = ' ';
}

static int fail(struct nbd *nbd, const char *doing, struct error *err)
{
	int code = nbd_get_errno() ? nbd_get_errno() : EIO;
	char text[SAID_MAX] = "";

	/* qemu-nbd answers some read errors by hanging up: to the caller both are a bad source. */
	if (code == ENOTCONN)
		code = EIO;
	if (nbd->child) {
		/* It has died, or has answered with an error: either way its words are there. */
		struct pollfd pfd = { .fd = nbd->said_fd, .events = POLLIN };

		if (poll(&pfd, 1, 1000) > 0)
			said(nbd->said_fd, text);
	}
	if (*text)
		return error_set(err, -code, "%s %s: %s", doing, nbd->what, text);
	return error_set(err, -code, "%s %s: %s", doing, nbd->what, nbd_get_error());
}

/* ---- operations ---- */

static int extents_add(void *opaque, const char *context, uint64_t offset, uint32_t *entries,
		       size_t count, int *error)
{
	struct nbd *nbd = opaque;
	uint64_t end = offset;

	if (strcmp(context, LIBNBD_CONTEXT_BASE_ALLOCATION))
		return 0;
	nbd->nr_extents = 0;
	nbd->extents_start = offset;
	for (size_t i = 0; i + 1 < count && nbd->nr_extents < MAX_EXTENTS; i += 2) {
		bool data = !(entries[i + 1] & LIBNBD_STATE_ZERO);

		end += entries[i];
		if (nbd->nr_extents && nbd->extents[nbd->nr_extents - 1].data == data)
			nbd->nr_extents--;
		nbd->extents[nbd->nr_extents++] = (struct extent){ end, data };
	}
	return 0;
}

static int extents_ask(struct nbd *nbd, uint64_t offset, struct error *err)
{
	uint64_t count = MIN(nbd->size - offset, STATUS_MAX);
	nbd_extent_callback cb = { .callback = extents_add, .user_data = nbd };
	int r;

	nbd->nr_extents = 0;
	pthread_mutex_lock(&nbd->lock);
	r = nbd_block_status(nbd->h, count, offset, cb, 0);
	pthread_mutex_unlock(&nbd->lock);
	if (r < 0)
		return fail(nbd, "cannot read the allocation map of", err);
	if (!nbd->nr_extents || nbd->extents[nbd->nr_extents - 1].end <= offset)
		return error_set(err, -EPROTO, "%s: the NBD server gave an empty allocation map",
				 nbd->what);
	return 0;
}

static int nbd_extent(void *priv, uint64_t offset, uint64_t *len, bool *data, struct error *err)
{
	struct nbd *nbd = priv;
	int r;

	*data = true;
	*len = nbd->size - offset;
	if (!nbd->allocation)
		return 0;
	if (!nbd->nr_extents || offset < nbd->extents_start ||
	    offset >= nbd->extents[nbd->nr_extents - 1].end) {
		r = extents_ask(nbd, offset, err);
		if (r)
			return r;
	}
	for (size_t i = 0; i < nbd->nr_extents; i++) {
		if (offset >= nbd->extents[i].end)
			continue;
		*len = nbd->extents[i].end - offset;
		*data = nbd->extents[i].data;
		return 0;
	}
	return error_set(err, -EPROTO, "%s: holes in the allocation map", nbd->what);
}

static int nbd_read(void *priv, void *data, size_t len, uint64_t offset, struct error *err)
{
	struct nbd *nbd = priv;

	for (size_t done = 0; done < len;) {
		size_t n = MIN(len - done, MAX_READ);
		int r;

		pthread_mutex_lock(&nbd->lock);
		r = nbd_pread(nbd->h, (char *)data + done, n, offset + done, 0);
		if (r < 0)
			r = fail(nbd, "cannot read", err);
		pthread_mutex_unlock(&nbd->lock);
		if (r < 0)
			return r;
		done += n;
	}
	return 0;
}

static void nbd_end(void *priv)
{
	struct nbd *nbd = priv;

	if (nbd->h)
		nbd_close(nbd->h);
	if (nbd->child) {
		kill(nbd->child, SIGTERM);
		while (waitpid(nbd->child, NULL, 0) < 0 && errno == EINTR)
			;
	}
	if (nbd->said_fd >= 0)
		close(nbd->said_fd);
	pthread_mutex_destroy(&nbd->lock);
	free(nbd->what);
	free(nbd);
}

static const struct source_ops nbd_ops = { nbd_extent, nbd_read, nbd_end };

static struct nbd *nbd_new(const char *what, struct error *err)
{
	struct nbd *nbd = calloc(1, sizeof(*nbd));

	if (!nbd)
		goto nomem;
	nbd->said_fd = -1;
	pthread_mutex_init(&nbd->lock, NULL);
	nbd->what = strdup(what);
	nbd->h = nbd_create();
	if (nbd->what && nbd->h && !nbd_add_meta_context(nbd->h, LIBNBD_CONTEXT_BASE_ALLOCATION))
		return nbd;
	nbd_end(nbd);
nomem:
	error_set(err, -ENOMEM, "out of memory");
	return NULL;
}

static int nbd_connected(struct source *s, struct nbd *nbd, struct error *err)
{
	int64_t size = nbd_get_size(nbd->h);

	if (size < 0)
		return fail(nbd, "cannot tell the size of", err);
	nbd->size = size;
	nbd->allocation = nbd_can_meta_context(nbd->h, LIBNBD_CONTEXT_BASE_ALLOCATION) == 1;
	s->ops = &nbd_ops;
	s->priv = nbd;
	s->size = size;
	return 0;
}

int nbd_open_uri(struct source *s, const char *uri, struct error *err)
{
	struct nbd *nbd = nbd_new(uri, err);
	int r;

	if (!nbd)
		return err ? err->code : -ENOMEM;
	if (nbd_connect_uri(nbd->h, uri))
		r = fail(nbd, "cannot connect to", err);
	else
		r = nbd_connected(s, nbd, err);
	if (r)
		nbd_end(nbd);
	return r;
}

/* ---- a qemu-nbd of our own ---- */

/* A copy of the environment with LISTEN_PID (to be filled in after the fork) and LISTEN_FDS. */
static char **activation_env(char *pid_var)
{
	static char fds_var[] = "LISTEN_FDS=1";
	size_t n = 0, at = 0;
	char **env;

	while (environ[n])
		n++;
	env = calloc(n + 3, sizeof(*env));
	if (!env)
		return NULL;
	for (size_t i = 0; i < n; i++)
		if (strncmp(environ[i], "LISTEN_", 7))
			env[at++] = environ[i];
	env[at++] = pid_var;
	env[at] = fds_var;
	return env;
}

/* Between fork and exec: only what is safe in a process with threads. */
static void child_exec(char **argv, char **env, char *pid_digits, int listen_fd, int said_fd)
{
	pid_t pid = getpid();
	char digits[12];
	int n = 0, null;

	for (; pid; pid /= 10)
		digits[n++] = '0' + pid % 10;
	while (n)
		*pid_digits++ = digits[--n];
	*pid_digits = '\0';
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	/* A Ctrl-C is for us: it must not end the source before the reader. */
	setpgid(0, 0);
	null = open("/dev/null", O_RDWR);
	dup2(null, 0);
	dup2(null, 1);
	dup2(said_fd, 2);
	if (listen_fd >= 0) {
		/* dup2() of a descriptor onto itself would keep its close-on-exec flag. */
		if (listen_fd == 3)
			fcntl(3, F_SETFD, 0);
		else
			dup2(listen_fd, 3);
	}
	execvpe(argv[0], argv, env);
	dprintf(2, "cannot run %s: %s (install qemu-utils)", argv[0], strerror(errno));
	_exit(127);
}

static int spawn(char **argv, int listen_fd, pid_t *pid, int *said_fd, struct error *err)
{
	char pid_var[32] = "LISTEN_PID=";
	char **env = activation_env(pid_var);
	int pipes[2], r = 0;

	if (!env)
		return error_set(err, -ENOMEM, "out of memory");
	if (pipe2(pipes, O_CLOEXEC)) {
		r = error_set(err, -errno, "cannot make a pipe: %s", strerror(errno));
		goto free_env;
	}
	*pid = fork();
	if (!*pid)
		child_exec(argv, env, pid_var + strlen(pid_var), listen_fd, pipes[1]);
	close(pipes[1]);
	if (*pid < 0) {
		r = error_set(err, -errno, "cannot start %s: %s", argv[0], strerror(errno));
		*pid = 0;
		close(pipes[0]);
		goto free_env;
	}
	*said_fd = pipes[0];
	/* A server lives on after it has said something: nobody waits for the end of its words. */
	if (listen_fd >= 0)
		fcntl(pipes[0], F_SETFL, O_NONBLOCK);
free_env:
	free(env);
	return r;
}

/*
 * qemu-nbd reads clusters beyond the end of a truncated file as zeros, and opens an image whose
 * reference counts are wrong: such an image would be imported, as something else than it was.
 */
static int qcow2_check(const char *path, struct error *err)
{
	char *argv[] = { QEMU_IMG, "check", "-q", "-U", "-f", "qcow2", "--", (char *)path, NULL };
	char text[SAID_MAX];
	int said_fd, status, r;
	pid_t pid;

	r = spawn(argv, -1, &pid, &said_fd, err);
	if (r)
		return r;
	said(said_fd, text);
	close(said_fd);
	while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
		;
	/* 3: leaked clusters, which waste space and harm nothing */
	if (WIFEXITED(status) && (WEXITSTATUS(status) == 0 || WEXITSTATUS(status) == 3))
		return 0;
	return error_set(err, -EUCLEAN, "%s is a damaged qcow2 image (`qemu-img check` tells more)%s%s",
			 path, *text ? ": " : "", text);
}

static int listen_private(struct nbd *nbd, struct sockaddr_un *addr, struct error *err)
{
	int fd;

	strcpy(nbd->dir, "/tmp/vmdedup-XXXXXX");
	if (!mkdtemp(nbd->dir))
		return error_set(err, -errno, "cannot make a folder in /tmp: %s", strerror(errno));
	*addr = (struct sockaddr_un){ .sun_family = AF_UNIX };
	snprintf(addr->sun_path, sizeof(addr->sun_path), "%s/nbd", nbd->dir);
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (fd < 0 || bind(fd, (struct sockaddr *)addr, sizeof(*addr)) || listen(fd, 1)) {
		error_set(err, -errno, "cannot make a socket for qemu-nbd: %s", strerror(errno));
		if (fd >= 0)
			close(fd);
		return err ? err->code : -EIO;
	}
	return fd;
}

static int qemu_start(struct nbd *nbd, const char *path, const char *format, struct error *err)
{
	char format_arg[32];
	char *argv[] = { QEMU_NBD, "--read-only", format_arg, "--", (char *)path, NULL };
	struct sockaddr_un addr;
	int r, fd;

	snprintf(format_arg, sizeof(format_arg), "--format=%s", format);
	fd = listen_private(nbd, &addr, err);
	if (fd < 0)
		return fd;
	r = spawn(argv, fd, &nbd->child, &nbd->said_fd, err);
	/* With our copy closed, the connection fails as soon as the child is gone. */
	close(fd);
	if (!r && nbd_connect_unix(nbd->h, addr.sun_path)) {
		fail(nbd, "cannot open", err);
		r = -EINVAL; /* libnbd's own is about the connection */
		if (err)
			err->code = r;
	}
	unlink(addr.sun_path);
	rmdir(nbd->dir);
	return r;
}

int nbd_open_file(struct source *s, const char *path, const char *format, struct error *err)
{
	struct nbd *nbd;
	int r;

	if (!strcmp(format, "qcow2")) {
		r = qcow2_check(path, err);
		if (r)
			return r;
	}
	nbd = nbd_new(path, err);
	if (!nbd)
		return err ? err->code : -ENOMEM;
	r = qemu_start(nbd, path, format, err);
	if (!r)
		r = nbd_connected(s, nbd, err);
	if (r)
		nbd_end(nbd);
	return r;
}
