BEGIN TRANSACTION;
CREATE TABLE changes (
      n INTEGER PRIMARY KEY,
      source TEXT NOT NULL,
      user_id TEXT,
      project_id TEXT
    );
INSERT INTO "changes" VALUES(1,'e78fb799bf5cd803','ada','demo');
INSERT INTO "changes" VALUES(2,'e78fb799bf5cd803','ada','demo');
INSERT INTO "changes" VALUES(3,'e78fb799bf5cd803','ada','demo');
CREATE TABLE duties (
      name TEXT PRIMARY KEY,
      holder TEXT,
      until INTEGER,
      done_at INTEGER
    ) WITHOUT ROWID
    ;
INSERT INTO "duties" VALUES('first look','worker',1735787050678,NULL);
CREATE TABLE events (
      record_id TEXT NOT NULL,
      seq INTEGER NOT NULL,
      body TEXT NOT NULL,
      PRIMARY KEY (record_id, seq)
    ) WITHOUT ROWID
    ;
INSERT INTO "events" VALUES('67760165000000000000000a',1,'{"at":1735787048678,"code":"a","message":"First.","status":"error","generation":2,"hint":""}');
INSERT INTO "events" VALUES('67760165000000000000000a',2,'{"at":1735787048678,"code":"b","message":"Second.","status":"error","generation":2,"hint":"Do it."}');
CREATE TABLE idempotency_keys (
      user_id TEXT NOT NULL,
      key TEXT NOT NULL,
      fingerprint TEXT NOT NULL,
      record_id TEXT NOT NULL,
      expires_at INTEGER NOT NULL,
      PRIMARY KEY (user_id, key)
    ) WITHOUT ROWID
    ;
INSERT INTO "idempotency_keys" VALUES('ada','key','fingerprint','67760165000000000000000a',1735873445678);
CREATE TABLE pings (one INTEGER PRIMARY KEY CHECK (one = 1), count INTEGER NOT NULL);
INSERT INTO "pings" VALUES(1,0);
CREATE TABLE projects (
      n INTEGER PRIMARY KEY,
      id TEXT NOT NULL UNIQUE,
      user_id TEXT NOT NULL,
      project_id TEXT NOT NULL,
      name TEXT NOT NULL,
      metadata TEXT NOT NULL,
      namespace TEXT NOT NULL,
      deployment TEXT NOT NULL,
      service TEXT NOT NULL,
      ingress TEXT NOT NULL,
      status TEXT NOT NULL,
      endpoint TEXT,
      error TEXT,
      error_terminal INTEGER NOT NULL,
      last_activated_at INTEGER,
      last_deactivated_at INTEGER,
      created_at INTEGER NOT NULL,
      updated_at INTEGER NOT NULL,
      desired TEXT NOT NULL,
      generation INTEGER NOT NULL,
      observed_generation INTEGER NOT NULL,
      attempts INTEGER NOT NULL,
      due_at INTEGER,
      deadline_at INTEGER,
      lease_worker TEXT,
      lease_number INTEGER,
      lease_until INTEGER,
      claims INTEGER NOT NULL,
      last_seq INTEGER NOT NULL,
      woken INTEGER NOT NULL,
      claimable_at INTEGER GENERATED ALWAYS AS (coalesce(lease_until, due_at)) VIRTUAL,
      UNIQUE (user_id, project_id)
    );
INSERT INTO "projects" VALUES(1,'67760165000000000000000a','ada','demo','Démo','{"team":"\udcff","n":1180591620717411303424}','user-ada','demo-api','demo-svc','demo-ingress','error',NULL,'{"code":"image_not_found","message":"No image.","hint":"Name another."}',0,NULL,NULL,1735787045678,1735787048678,'active',2,2,1,1735787105678,NULL,NULL,NULL,NULL,1,2,0);
CREATE INDEX projects_page ON projects (user_id, created_at, id);
CREATE INDEX projects_page_by_status ON projects (user_id, status, created_at, id);
CREATE INDEX projects_unsettled ON projects (n)
    WHERE status <> 'inactive' OR desired <> 'inactive' OR observed_generation < generation
    ;
CREATE INDEX idempotency_keys_by_expiry ON idempotency_keys (expires_at);
CREATE INDEX idempotency_keys_by_record ON idempotency_keys (record_id);
CREATE INDEX projects_claimable ON projects (claimable_at, id, user_id)
    WHERE claimable_at IS NOT NULL
    ;
CREATE INDEX projects_claimable_by_user ON projects (user_id, claimable_at, id)
    WHERE claimable_at IS NOT NULL
    ;
CREATE INDEX projects_leased ON projects (lease_until, user_id)
    WHERE lease_until IS NOT NULL
    ;
COMMIT;
PRAGMA user_version = 3;
