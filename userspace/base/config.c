// SPDX-License-Identifier: GPL-2.0-or-later
#include <ctype.h>
#include <errno.h>
#include <ini.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/config.h"

enum kind { TEXT, PATH, ENDPOINT, ENDPOINTS, SIZE, SECONDS };

static const struct key {
	const char *section;
	const char *name;
	enum kind kind;
	size_t offset;
} keys[] = {
	{ "cluster", "meta", ENDPOINTS, offsetof(struct config, meta) },
	{ "store", "store", PATH, offsetof(struct config, store) },
	{ "store", "run", PATH, offsetof(struct config, run) },
	{ "meta", "listen", ENDPOINT, offsetof(struct config, meta_listen) },
	{ "meta", "store", TEXT, offsetof(struct config, meta_store) },
	{ "data", "dir", PATH, offsetof(struct config, data_dir) },
	{ "data", "listen", ENDPOINT, offsetof(struct config, data_listen) },
	{ "data", "endpoint", ENDPOINT, offsetof(struct config, data_endpoint) },
	{ "data", "reserve", SIZE, offsetof(struct config, data_reserve) },
	{ "data", "capacity", SIZE, offsetof(struct config, data_capacity) },
	{ "data", "repair_rate", SIZE, offsetof(struct config, data_repair_rate) },
	{ "data", "scrub_rate", SIZE, offsetof(struct config, data_scrub_rate) },
	{ "data", "scrub_every", SECONDS, offsetof(struct config, data_scrub_every_s) },
	{ "data", "host", TEXT, offsetof(struct config, host) },
	{ "data", "rack", TEXT, offsetof(struct config, rack) },
	{ "agent", "cache", PATH, offsetof(struct config, cache) },
	{ "agent", "cache_file", PATH, offsetof(struct config, cache_file) },
	{ "agent", "cache_file_size", SIZE, offsetof(struct config, cache_file_size) },
	{ "agent", "listen", ENDPOINT, offsetof(struct config, agent_listen) },
	{ "agent", "endpoint", ENDPOINT, offsetof(struct config, agent_endpoint) },
	{ "agent", "rack", TEXT, offsetof(struct config, agent_rack) },
	{ "agent", "filter_budget", SIZE, offsetof(struct config, filter_budget) },
	{ "agent", "push_age", SECONDS, offsetof(struct config, push_age_s) },
	{ "agent", "push_bytes", SIZE, offsetof(struct config, push_bytes) },
	{ "agent", "push_rate", SIZE, offsetof(struct config, push_rate) },
	{ "curve", "secret", PATH, offsetof(struct config, curve_secret) },
	{ "curve", "servers", PATH, offsetof(struct config, curve_servers) },
	{ "curve", "clients", PATH, offsetof(struct config, curve_clients) },
};

struct parser {
	struct config *config;
	const char *path;
	FILE *file;
	unsigned int line;
	bool seen[ARRAY_SIZE(keys)];
	struct error *err;
	int r;
};

#define PARSE_ERROR(p, fmt, ...)                                                                   \
	((p)->r = error_set((p)->err, -EINVAL, "%s:%u: " fmt, (p)->path, (p)->line, ##__VA_ARGS__))

static const struct key *find_key(const char *section, const char *name, bool *section_known)
{
	*section_known = false;
	for (size_t i = 0; i < ARRAY_SIZE(keys); i++) {
		if (strcmp(section, keys[i].section))
			continue;
		*section_known = true;
		if (!strcmp(name, keys[i].name))
			return &keys[i];
	}
	return NULL;
}

static bool is_endpoint(const char *s, size_t len)
{
	static const char *const schemes[] = { "tcp://", "ipc://", "inproc://" };

	for (size_t i = 0; i < ARRAY_SIZE(schemes); i++) {
		size_t n = strlen(schemes[i]);

		if (len > n && !strncmp(s, schemes[i], n))
			return true;
	}
	return false;
}

/* One endpoint, or several with commas between. */
static bool are_endpoints(const char *s, bool many)
{
	for (;;) {
		size_t n = many ? strcspn(s, ",") : strlen(s);

		if (!is_endpoint(s, n))
			return false;
		if (!s[n])
			return true;
		s += n + 1;
	}
}

static int set_number(struct parser *p, const struct key *key, const char *value)
{
	uint64_t *field = (uint64_t *)((char *)p->config + key->offset);
	char *end;

	if (key->kind == SIZE) {
		if (size_from_text(value, field))
			return PARSE_ERROR(p, "%s: '%s' is not a size such as 4096, 64M or 1.5TiB",
					   key->name, value);
		return 0;
	}
	errno = 0;
	*field = strtoull(value, &end, 10);
	if (errno || *end || !isdigit((unsigned char)*value))
		return PARSE_ERROR(p, "%s: '%s' is not a number of seconds", key->name, value);
	return 0;
}

static int set_text(struct parser *p, const struct key *key, const char *value)
{
	char **field = (char **)((char *)p->config + key->offset);
	char *copy;

	if (key->kind == PATH && *value != '/')
		return PARSE_ERROR(p, "%s: '%s' must begin with a slash", key->name, value);
	if (key->kind == ENDPOINT && !are_endpoints(value, false))
		return PARSE_ERROR(p, "%s: '%s' is not an endpoint such as tcp://10.0.0.1:7401",
				   key->name, value);
	if (key->kind == ENDPOINTS && strcmp(value, "embedded") && !are_endpoints(value, true))
		return PARSE_ERROR(p,
				   "%s: '%s' is neither 'embedded' nor endpoints such as "
				   "tcp://10.0.0.1:7401,tcp://10.0.0.2:7401",
				   key->name, value);
	copy = strdup(value);
	if (!copy)
		return p->r = error_set(p->err, -ENOMEM, "out of memory");
	free(*field);
	*field = copy;
	return 0;
}

static int take_key(void *user, const char *section, const char *name, const char *value)
{
	struct parser *p = user;
	const struct key *key;
	bool section_known;
	int r;

	if (p->r)
		return 1;
	key = find_key(section, name, &section_known);
	if (!key) {
		if (section_known)
			PARSE_ERROR(p, "unknown key '%s' in section [%s]", name, section);
		else if (*section)
			PARSE_ERROR(p, "unknown section [%s]", section);
		else
			PARSE_ERROR(p, "'%s' stands before any [section]", name);
		return 1;
	}
	if (p->seen[key - keys]) {
		PARSE_ERROR(p, "'%s' is set a second time", name);
		return 1;
	}
	p->seen[key - keys] = true;
	if (!*value) {
		PARSE_ERROR(p, "'%s' has no value", name);
		return 1;
	}
	if (key->kind == SIZE || key->kind == SECONDS)
		r = set_number(p, key, value);
	else
		r = set_text(p, key, value);
	return !r;
}

/* A section without keys never reaches take_key(). */
static void check_section_line(struct parser *p, const char *line)
{
	bool known = false;
	char name[64], end;

	if (sscanf(line, "[%63[^]\n]%c", name, &end) == 2 && end == ']') {
		find_key(name, "", &known);
		if (!known)
			PARSE_ERROR(p, "unknown section [%s]", name);
	}
}

/* Feeds inih, counts the lines for the messages, and hides indentation, which inih would take
 * for a continuation of the value before. */
static char *read_line(char *buf, int size, void *stream)
{
	struct parser *p = stream;
	size_t skip, len;

	if (p->r || !fgets(buf, size, p->file))
		return NULL;
	p->line++;
	len = strlen(buf);
	if (len == (size_t)size - 1 && buf[len - 1] != '\n') {
		PARSE_ERROR(p, "the line is longer than %d bytes", size - 2);
		return NULL;
	}
	skip = strspn(buf, " \t");
	memmove(buf, buf + skip, len - skip + 1);
	check_section_line(p, buf);
	return p->r ? NULL : buf;
}

static int parse_file(struct config *c, const char *path, FILE *file, struct error *err)
{
	struct parser p = { .config = c, .path = path, .file = file, .err = err };
	int line = ini_parse_stream(read_line, &p, take_key, &p);

	if (p.r)
		return p.r;
	if (line > 0)
		return error_set(err, -EINVAL,
				 "%s:%d: neither '[section]' nor 'key = value' nor '# comment'",
				 path,
				 line);
	if (line < 0)
		return error_set(err, -ENOMEM, "%s: out of memory", path);
	if (ferror(file))
		return error_set(err, -EIO, "%s: cannot be read", path);
	return 0;
}

static int default_text(char **field, const char *value)
{
	if (*field)
		return 0;
	*field = strdup(value);
	return *field ? 0 : -ENOMEM;
}

/* What depends on other keys is filled in after the file was read. */
static int set_defaults(struct config *c)
{
	char host[256] = "localhost";

	if (gethostname(host, sizeof(host) - 1))
		strcpy(host, "localhost");
	if (default_text(&c->meta, "embedded") || default_text(&c->store, "/var/lib/vmdedup") ||
	    default_text(&c->run, "/run/vmdedup") ||
	    default_text(&c->meta_listen, "tcp://127.0.0.1:7401") ||
	    default_text(&c->data_listen, "tcp://127.0.0.1:7402") ||
	    default_text(&c->data_endpoint, c->data_listen) || default_text(&c->host, host) ||
	    default_text(&c->rack, "") || default_text(&c->agent_rack, c->rack))
		return -ENOMEM;
	if (!c->data_dir && asprintf(&c->data_dir, "%s/data", c->store) < 0) {
		c->data_dir = NULL;
		return -ENOMEM;
	}
	if (!c->meta_store && asprintf(&c->meta_store, "%s/meta.sqlite", c->store) < 0) {
		c->meta_store = NULL;
		return -ENOMEM;
	}
	return 0;
}

static int check(const struct config *c, const char *path, struct error *err)
{
	if (*c->meta_store != '/' && strncmp(c->meta_store, "postgresql://", 13))
		return error_set(err, -EINVAL, "%s: [meta] store is neither the path of a SQLite "
				 "file nor postgresql://HOST[,HOST...]/DATABASE", path);
	if (c->cache && c->cache_file)
		return error_set(err, -EINVAL,
				 "%s: [agent] has both cache and cache_file: keep one", path);
	if (c->filter_budget && c->filter_budget < 1 << 20)
		return error_set(err, -EINVAL, "%s: [agent] filter_budget is 0, for none, or at "
				 "least 1M", path);
	if (c->push_rate && c->push_rate < CONFIG_MIN_PUSH_RATE)
		return error_set(err, -EINVAL, "%s: [agent] push_rate is less than 64K a second: "
				 "0 stands for no bound", path);
	if (c->cache_file && !c->cache_file_size)
		return error_set(err, -EINVAL, "%s: [agent] cache_file needs a cache_file_size",
				 path);
	return 0;
}

int config_load(struct config *c, const char *path, struct error *err)
{
	bool may_be_missing = false;
	FILE *file;
	int r = 0;

	memset(c, 0, sizeof(*c));
	c->data_reserve = 64 << 20;
	c->data_repair_rate = 100 << 20;
	c->data_scrub_rate = 16 << 20;
	c->data_scrub_every_s = 604800;
	c->filter_budget = 1 << 30;
	c->push_age_s = 300;
	c->push_bytes = 256 << 20;
	if (!path)
		path = getenv("VMDEDUP_CONF");
	if (!path) {
		path = CONFIG_DEFAULT_PATH;
		may_be_missing = true;
	}

	file = fopen(path, "re");
	if (!file && !(errno == ENOENT && may_be_missing)) {
		r = -errno;
		error_set(err, r, "cannot open the configuration %s: %s", path, strerror(-r));
		goto free_config;
	}
	if (file) {
		r = parse_file(c, path, file, err);
		fclose(file);
		if (r)
			goto free_config;
	}
	r = set_defaults(c);
	if (r) {
		error_set(err, r, "out of memory");
		goto free_config;
	}
	r = check(c, path, err);
	if (r)
		goto free_config;
	return 0;

free_config:
	config_free(c);
	return r;
}

void config_free(struct config *c)
{
	for (size_t i = 0; i < ARRAY_SIZE(keys); i++)
		if (keys[i].kind != SIZE && keys[i].kind != SECONDS)
			free(*(char **)((char *)c + keys[i].offset));
	memset(c, 0, sizeof(*c));
}
