// SPDX-License-Identifier: GPL-2.0-or-later
#include <stdio.h>
#include <string.h>
#include "strike.h"
#include "world.h"

void strike_init(struct strike *s)
{
	setvbuf(stdout, NULL, _IOLBF, 0);
	if (pthread_mutex_init(&s->lock, NULL) || pthread_cond_init(&s->changed, NULL))
		die("cannot start");
}

void strike_arm(struct strike *s, size_t at, const char *name)
{
	pthread_mutex_lock(&s->lock);
	s->armed = true;
	s->fired = false;
	s->at = 0;
	s->break_at = at;
	s->break_name = name;
	pthread_mutex_unlock(&s->lock);
}

bool strike_is(struct strike *s, const char *name)
{
	if (!s->armed || s->fired)
		return false;
	s->fired = s->break_name ? !strcmp(name, s->break_name) : s->at++ == s->break_at;
	return s->fired;
}

void strike_tell(struct strike *s)
{
	pthread_mutex_lock(&s->lock);
	pthread_cond_broadcast(&s->changed);
	pthread_mutex_unlock(&s->lock);
}

bool strike_has_fired(struct strike *s)
{
	bool fired;

	pthread_mutex_lock(&s->lock);
	fired = s->fired;
	pthread_mutex_unlock(&s->lock);
	return fired;
}

bool strike_disarm(struct strike *s)
{
	bool fired;

	pthread_mutex_lock(&s->lock);
	fired = s->fired;
	s->armed = false;
	pthread_mutex_unlock(&s->lock);
	return fired;
}
