BEGIN TRANSACTION;
CREATE TABLE alerts (
	id INTEGER NOT NULL, 
	at FLOAT NOT NULL, 
	job_id VARCHAR, 
	tag VARCHAR, 
	kind VARCHAR NOT NULL, 
	text TEXT NOT NULL, 
	PRIMARY KEY (id)
);
CREATE TABLE answered_by (
	job_id VARCHAR NOT NULL, 
	model VARCHAR NOT NULL
);
INSERT INTO "answered_by" VALUES('01m82s11v5yrhb','gpt-4o-mini');
CREATE TABLE entries (
	id INTEGER NOT NULL, 
	at FLOAT NOT NULL, 
	job_id VARCHAR NOT NULL, 
	tag VARCHAR NOT NULL, 
	n BIGINT DEFAULT 0 NOT NULL, 
	kind VARCHAR NOT NULL, 
	nanos BIGINT DEFAULT 0 NOT NULL, 
	calls BIGINT DEFAULT 0 NOT NULL, 
	note TEXT, 
	PRIMARY KEY (id)
);
INSERT INTO "entries" VALUES(1,1.79538968781590318676e+09,'01m82s11v5yrhb','01m82s11v5yrhb-0',1,'hold',7323306,0,NULL);
INSERT INTO "entries" VALUES(2,1.79538968823793745042e+09,'01m82s11v5yrhb','01m82s11v5yrhb-0',1,'settle',181200,6,NULL);
INSERT INTO "entries" VALUES(3,1.79538968961541032793e+09,'01m82s13jqvc9s','01m82s13jqvc9s-0',1,'hold',3662106,0,NULL);
CREATE TABLE files (
	path VARCHAR NOT NULL, 
	job_id VARCHAR NOT NULL, 
	tag VARCHAR, 
	kind VARCHAR NOT NULL, 
	n BIGINT DEFAULT 0 NOT NULL, 
	read BIGINT DEFAULT 0 NOT NULL, 
	size_bytes BIGINT DEFAULT 0 NOT NULL, 
	digest VARCHAR NOT NULL, 
	first BIGINT DEFAULT 0 NOT NULL, 
	last BIGINT DEFAULT 0 NOT NULL, 
	PRIMARY KEY (path)
);
INSERT INTO "files" VALUES('jobs/01m82s11v5yrhb/rows.parquet','01m82s11v5yrhb',NULL,'rows',0,0,741,'881f5587f0310fb1e3a14f7e51a058f6',0,5);
INSERT INTO "files" VALUES('jobs/01m82s11v5yrhb/wire/01m82s11v5yrhb-0.1.0.jsonl','01m82s11v5yrhb','01m82s11v5yrhb-0','journal',1,1,5922,'cfbe7324afe75270dbc715aedddc38ed',0,0);
INSERT INTO "files" VALUES('jobs/01m82s11v5yrhb/results/0.1.parquet','01m82s11v5yrhb',NULL,'results',1,0,5128,'c620fd3f468a54a515a366304ace4f27',0,5);
INSERT INTO "files" VALUES('jobs/01m82s13jqvc9s/rows.parquet','01m82s13jqvc9s',NULL,'rows',0,0,741,'881f5587f0310fb1e3a14f7e51a058f6',0,5);
CREATE TABLE jobs (
	id VARCHAR NOT NULL, 
	name VARCHAR, 
	state VARCHAR NOT NULL, 
	reason TEXT, 
	stopped VARCHAR, 
	fingerprint VARCHAR, 
	model VARCHAR NOT NULL, 
	task_digest VARCHAR, 
	lane VARCHAR NOT NULL, 
	spec TEXT NOT NULL, 
	quote TEXT, 
	rows BIGINT DEFAULT 0 NOT NULL, 
	invalid BIGINT DEFAULT 0 NOT NULL, 
	duplicates BIGINT DEFAULT 0 NOT NULL, 
	cached BIGINT DEFAULT 0 NOT NULL, 
	next_seq BIGINT DEFAULT 0 NOT NULL, 
	counts TEXT, 
	cancel_requested INTEGER DEFAULT 0 NOT NULL, 
	created_at FLOAT NOT NULL, 
	started_at FLOAT, 
	finished_at FLOAT, 
	owner VARCHAR, 
	lease_until FLOAT DEFAULT 0 NOT NULL, 
	epoch BIGINT DEFAULT 0 NOT NULL, 
	PRIMARY KEY (id), 
	CHECK (state IN ('planning', 'pending', 'running', 'paused', 'completed', 'failed', 'cancelled')), 
	CHECK (state = 'planning' OR fingerprint IS NOT NULL)
);
INSERT INTO "jobs" VALUES('01m82s11v5yrhb',NULL,'completed',NULL,NULL,'30edcc800888367bfde71daf511e67ba','openai/gpt-4o-mini','4cab4c06f25545391fd94ef489e7e0f3','live','{"inputs": ["r.csv"], "task": {"name": "prompt", "endpoint": "chat", "system": null, "prompt": "Say {{ text }}", "messages_column": null, "bodies": false, "rows": "line", "schema": null, "variables": {}, "column_map": {}, "temperature": null, "max_output": null, "expect": null, "examples": []}, "parameters": {"temperature": null, "max_output": null, "schema": null, "extra": {}}, "model": "openai/gpt-4o-mini", "lane": "live", "batch_size": null, "cache": true, "dedupe": true, "rpm": null, "tpm": null, "concurrency": null, "on_error": "continue", "row_mode": "rows", "folder": "/home/user/work", "root": "/home/user/work", "columns": ["key", "id", "text"], "price": "{\"model\":\"openai/gpt-4o-mini\",\"lane\":\"live\",\"source\":\"genai-prices 0.2.3\",\"date\":\"2026-11-22\",\"batch_known\":true,\"tiers\":[{\"input\":\"150\",\"cached_input\":\"75\",\"cache_write\":\"150\",\"output\":\"600\",\"request\":\"0\",\"above_tokens\":0}]}"}','{"lane":"live","requests":6,"input_tokens":18,"output_tokens":1800,"expected_nanos":1082700,"at_most_nanos":7323306,"list_price_nanos":1082700,"waves":1,"price_source":"genai-prices 0.2.3, 2026-11-22","notes":[]}',6,0,0,0,1,'{"succeeded": 6, "failed": 0, "missing": 0, "expired": 0, "cancelled": 0}',0,1795389687.65514,1.79538968780873465537e+09,1.7953896882694854736e+09,NULL,0.0,1);
INSERT INTO "jobs" VALUES('01m82s13jqvc9s',NULL,'running',NULL,NULL,'110ea1ea33182fdaf3ddf2ec1366039e','openai/gpt-4o-mini','b9da5c8ccdece561a13744e196a2906e','batch','{"inputs": ["r.csv"], "task": {"name": "prompt", "endpoint": "chat", "system": null, "prompt": "Tell {{ text }}", "messages_column": null, "bodies": false, "rows": "line", "schema": null, "variables": {}, "column_map": {}, "temperature": null, "max_output": null, "expect": null, "examples": []}, "parameters": {"temperature": null, "max_output": null, "schema": null, "extra": {}}, "model": "openai/gpt-4o-mini", "lane": "batch", "batch_size": null, "cache": true, "dedupe": true, "rpm": null, "tpm": null, "concurrency": null, "on_error": "continue", "row_mode": "rows", "folder": "/home/user/work", "root": "/home/user/work", "columns": ["key", "id", "text"], "price": "{\"model\":\"openai/gpt-4o-mini\",\"lane\":\"batch\",\"source\":\"genai-prices 0.2.3\",\"date\":\"2026-11-22\",\"batch_known\":true,\"tiers\":[{\"input\":\"75\",\"cached_input\":\"75\",\"cache_write\":\"75\",\"output\":\"300\",\"request\":\"0\",\"above_tokens\":0}]}"}','{"lane":"batch","requests":6,"input_tokens":18,"output_tokens":1800,"expected_nanos":541350,"at_most_nanos":3662106,"list_price_nanos":1082700,"waves":1,"price_source":"genai-prices 0.2.3, 2026-11-22","notes":[]}',6,0,0,0,1,NULL,0,1.79538968943314027788e+09,1.795389689610986948e+09,NULL,NULL,0.0,0);
CREATE TABLE limits (
	scope VARCHAR NOT NULL, 
	cap_nanos BIGINT, 
	spent_nanos BIGINT DEFAULT 0 NOT NULL, 
	held_nanos BIGINT DEFAULT 0 NOT NULL, 
	PRIMARY KEY (scope), 
	CHECK (held_nanos >= 0 AND spent_nanos >= 0)
);
INSERT INTO "limits" VALUES('total',5000000000,181200,3662106);
INSERT INTO "limits" VALUES('day',NULL,0,0);
INSERT INTO "limits" VALUES('month',NULL,0,0);
INSERT INTO "limits" VALUES('job:01m82s11v5yrhb',NULL,181200,0);
INSERT INTO "limits" VALUES('day:2026-11-22',NULL,181200,3662106);
INSERT INTO "limits" VALUES('month:2026-11',NULL,181200,3662106);
INSERT INTO "limits" VALUES('job:01m82s13jqvc9s',NULL,0,3662106);
CREATE TABLE meta (
	"key" VARCHAR NOT NULL, 
	value TEXT NOT NULL, 
	PRIMARY KEY ("key")
);
INSERT INTO "meta" VALUES('revision','1');
INSERT INTO "meta" VALUES('incarnation','2320040');
INSERT INTO "meta" VALUES('boot','d4e86335-25dc-4d86-bbf1-1a0b296b2dca');
INSERT INTO "meta" VALUES('created_at','1795389687.2812345');
INSERT INTO "meta" VALUES('handed','2');
CREATE TABLE quotas (
	account VARCHAR NOT NULL, 
	model VARCHAR NOT NULL, 
	enqueued_cap BIGINT, 
	cool_until FLOAT DEFAULT 0 NOT NULL, 
	PRIMARY KEY (account, model)
);
CREATE TABLE shards (
	tag VARCHAR NOT NULL, 
	job_id VARCHAR NOT NULL, 
	seq BIGINT DEFAULT 0 NOT NULL, 
	lane VARCHAR NOT NULL, 
	state VARCHAR NOT NULL, 
	attempt BIGINT DEFAULT 0 NOT NULL, 
	expiries BIGINT DEFAULT 0 NOT NULL, 
	missings BIGINT DEFAULT 0 NOT NULL, 
	splits BIGINT DEFAULT 0 NOT NULL, 
	first BIGINT DEFAULT 0 NOT NULL, 
	last BIGINT DEFAULT 0 NOT NULL, 
	count BIGINT DEFAULT 0 NOT NULL, 
	content_bytes BIGINT DEFAULT 0 NOT NULL, 
	cap_tokens BIGINT DEFAULT 0 NOT NULL, 
	input_tokens BIGINT DEFAULT 0 NOT NULL, 
	path TEXT NOT NULL, 
	size_bytes BIGINT DEFAULT 0 NOT NULL, 
	digest VARCHAR NOT NULL, 
	due FLOAT DEFAULT 0 NOT NULL, 
	owner VARCHAR, 
	lease_until FLOAT DEFAULT 0 NOT NULL, 
	lease_was_until FLOAT DEFAULT 0 NOT NULL, 
	epoch BIGINT DEFAULT 0 NOT NULL, 
	submission BIGINT DEFAULT 0 NOT NULL, 
	looks BIGINT DEFAULT 0 NOT NULL, 
	fenced BIGINT DEFAULT 0 NOT NULL, 
	reads BIGINT DEFAULT 0 NOT NULL, 
	reread BIGINT DEFAULT 0 NOT NULL, 
	refusals BIGINT DEFAULT 0 NOT NULL, 
	waits BIGINT DEFAULT 0 NOT NULL, 
	price TEXT, 
	reason TEXT, 
	succeeded BIGINT DEFAULT 0 NOT NULL, 
	failed BIGINT DEFAULT 0 NOT NULL, 
	missing BIGINT DEFAULT 0 NOT NULL, 
	expired BIGINT DEFAULT 0 NOT NULL, 
	cancelled BIGINT DEFAULT 0 NOT NULL, 
	resent_failed BIGINT DEFAULT 0 NOT NULL, 
	resent_missing BIGINT DEFAULT 0 NOT NULL, 
	resent_expired BIGINT DEFAULT 0 NOT NULL, 
	extra_answers BIGINT DEFAULT 0 NOT NULL, 
	unknown_ids BIGINT DEFAULT 0 NOT NULL, 
	tokens_in BIGINT DEFAULT 0 NOT NULL, 
	tokens_out BIGINT DEFAULT 0 NOT NULL, 
	tokens_cached BIGINT DEFAULT 0 NOT NULL, 
	list_nanos BIGINT DEFAULT 0 NOT NULL, 
	failures TEXT, 
	settled_at FLOAT, 
	PRIMARY KEY (tag), 
	CHECK (state IN ('planned', 'submitting', 'in_doubt', 'waiting', 'sending', 'collecting', 'settled')), 
	CONSTRAINT every_request_has_an_outcome CHECK (state <> 'settled' OR count = succeeded + failed + missing + expired + cancelled), 
	CHECK (count > 0)
);
INSERT INTO "shards" VALUES('01m82s11v5yrhb-0','01m82s11v5yrhb',0,'live','settled',1,0,0,0,0,5,6,726,12000,18,'jobs/01m82s11v5yrhb/shards/01m82s11v5yrhb-0.jsonl',1254,'7ab806d4d0bed78b628d449c7c19ca52',88813.121442274,NULL,0.0,0.0,1,1,0,0,0,0,0,0,'{"model":"openai/gpt-4o-mini","lane":"live","source":"genai-prices 0.2.3","date":"2026-11-22","batch_known":true,"tiers":[{"input":"150","cached_input":"75","cache_write":"150","output":"600","request":"0","above_tokens":0}]}',NULL,6,0,0,0,0,0,0,0,0,0,36,293,0,181200,'{}',1.79538968822947406765e+09);
INSERT INTO "shards" VALUES('01m82s13jqvc9s-0','01m82s13jqvc9s',0,'batch','waiting',1,0,0,0,0,5,6,732,12000,18,'jobs/01m82s13jqvc9s/shards/01m82s13jqvc9s-0.jsonl',1260,'1d5e23e4b1130edae0fc37d3442e5928',88815.725804236,NULL,0.0,0.0,1,1,0,0,0,0,0,0,'{"model":"openai/gpt-4o-mini","lane":"batch","source":"genai-prices 0.2.3","date":"2026-11-22","batch_known":true,"tiers":[{"input":"75","cached_input":"75","cache_write":"75","output":"300","request":"0","above_tokens":0}]}',NULL,0,0,0,0,0,0,0,0,0,0,0,0,0,0,NULL,NULL);
CREATE TABLE submissions (
	tag VARCHAR NOT NULL, 
	n INTEGER NOT NULL, 
	job_id VARCHAR NOT NULL, 
	state VARCHAR NOT NULL, 
	account VARCHAR NOT NULL, 
	scopes TEXT NOT NULL, 
	hold_nanos BIGINT DEFAULT 0 NOT NULL, 
	spent_nanos BIGINT DEFAULT 0 NOT NULL, 
	unproven_nanos BIGINT DEFAULT 0 NOT NULL, 
	intent_at FLOAT NOT NULL, 
	file_id VARCHAR, 
	batch_id VARCHAR, 
	batch_model VARCHAR, 
	status VARCHAR, 
	ended INTEGER DEFAULT 0 NOT NULL, 
	cancel_asked INTEGER DEFAULT 0 NOT NULL, 
	total INTEGER, 
	completed INTEGER, 
	failed INTEGER, 
	output_file VARCHAR, 
	error_file VARCHAR, 
	PRIMARY KEY (tag, n), 
	CHECK (hold_nanos >= 0 AND unproven_nanos >= 0 AND spent_nanos >= unproven_nanos)
);
INSERT INTO "submissions" VALUES('01m82s11v5yrhb-0',1,'01m82s11v5yrhb','booked','openai|http://127.0.0.1:8912/v1|||2444ccd9f367','["job:01m82s11v5yrhb", "day:2026-11-22", "month:2026-11", "total"]',0,181200,0,1.7953896878069088459e+09,NULL,NULL,'gpt-4o-mini',NULL,1,0,NULL,NULL,NULL,NULL,NULL);
INSERT INTO "submissions" VALUES('01m82s13jqvc9s-0',1,'01m82s13jqvc9s','created','openai|http://127.0.0.1:8912/v1|||2444ccd9f367','["job:01m82s13jqvc9s", "day:2026-11-22", "month:2026-11", "total"]',3662106,0,0,1.79538968900011086464e+09,'file-51a2cc272cf2371f0492eb67481654b0','batch_684d5745b7e54ab2e3d2a476565f89c8','gpt-4o-mini','validating',0,0,NULL,NULL,NULL,NULL,NULL);
CREATE TABLE workers (
	owner VARCHAR NOT NULL, 
	seen_until FLOAT NOT NULL, 
	PRIMARY KEY (owner)
);
CREATE UNIQUE INDEX one_unfinished_job_per_fingerprint ON jobs (fingerprint) WHERE state IN ('paused', 'pending', 'running');
CREATE UNIQUE INDEX one_unfinished_job_per_name ON jobs (name) WHERE state IN ('paused', 'pending', 'running');
CREATE INDEX shards_due ON shards (state, due);
CREATE INDEX shards_of_job ON shards (job_id, seq);
CREATE INDEX files_of_job ON files (job_id, kind);
CREATE INDEX ix_answered_by_job_id ON answered_by (job_id);
COMMIT;
