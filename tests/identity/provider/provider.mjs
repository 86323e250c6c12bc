// A certified OpenID Connect provider for tests, told what to do by lines of JSON on its standard
// input, and ended with it. Each line is answered by one: {"issuer": ...}.
import { createServer } from "node:http";
import { createInterface } from "node:readline";
import { once } from "node:events";
import { Provider } from "oidc-provider";
import { SignJWT, UnsecuredJWT, decodeJwt, decodeProtectedHeader, exportJWK, exportSPKI, generateKeyPair } from "jose";

console.info = console.error; // the standard output is for answers

let issuer;
let provider;
let keys = [];
let made = 0;
const set = {
  clients: [],
  people: {}, // accounts by login: their claims
  thin: false, // ID tokens hold `sub` alone; the rest is told by the userinfo endpoint
  forge: null, // how ID tokens are changed on their way: { claims, header, sign }
};

async function makeKey() {
  const { privateKey, publicKey } = await generateKeyPair("RS256", { extractable: true });
  const jwk = { ...(await exportJWK(privateKey)), kid: `key-${++made}`, alg: "RS256", use: "sig" };
  return { privateKey, publicKey, jwk };
}

async function forged(token, { claims = {}, header = {}, sign = "own" }) {
  const said = { ...decodeJwt(token), ...claims };
  for (const name of Object.keys(said)) if (said[name] === null) delete said[name];
  const head = { ...decodeProtectedHeader(token), ...header };
  if (sign === "kept") {
    const body = Buffer.from(JSON.stringify(said)).toString("base64url");
    return [token.split(".")[0], body, token.split(".")[2]].join(".");
  }
  if (sign === "none") return new UnsecuredJWT(said).encode();
  if (sign === "public") {
    const secret = Buffer.from(await exportSPKI(keys[0].publicKey));
    return new SignJWT(said).setProtectedHeader({ ...head, alg: "HS256" }).sign(secret);
  }
  const key = sign === "other" ? await makeKey() : keys[0];
  return new SignJWT(said).setProtectedHeader(head).sign(key.privateKey);
}

function account(login) {
  return { accountId: login, claims: async () => ({ sub: login, ...set.people[login] }) };
}

async function grant(ctx) {
  const { client, session } = ctx.oidc;
  const known = session.grantIdFor(client.clientId);
  if (known) return ctx.oidc.provider.Grant.find(known);
  const given = new ctx.oidc.provider.Grant({ clientId: client.clientId, accountId: session.accountId });
  given.addOIDCScope("openid profile email groups");
  await given.save();
  return given;
}

function makeProvider() {
  provider = new Provider(issuer, {
    jwks: { keys: keys.map((one) => one.jwk) },
    clients: set.clients,
    conformIdTokenClaims: set.thin,
    claims: { openid: ["sub"], profile: ["name"], email: ["email", "email_verified"], groups: ["groups"] },
    scopes: ["openid", "profile", "email", "groups"],
    cookies: { keys: ["of-tests"] },
    features: { devInteractions: { enabled: false }, backchannelLogout: { enabled: true } },
    interactions: { url: (_, one) => `/interaction/${one.uid}` },
    findAccount: (_, login) => (login in set.people ? account(login) : undefined),
    loadExistingGrant: grant,
    // Without its guard against loopback, where the site is that is told of sign-outs.
    fetch: (url, { dispatcher, ...options }) => fetch(url, options),
    ttl: { Interaction: 600, Session: 600, Grant: 600, AccessToken: 600, IdToken: 600 },
  });
  provider.use(async (ctx, next) => {
    await next();
    if (set.forge && ctx.oidc?.route === "token" && ctx.body?.id_token)
      ctx.body.id_token = await forged(ctx.body.id_token, set.forge);
  });
  provider.on("server_error", (_, error) => console.error(error));
}

async function interact(request, response) {
  if (request.method === "GET") {
    response.setHeader("content-type", "text/html");
    response.end(`<!doctype html><title>Provider</title><form method="post">
      <input name="login" aria-label="Login" autofocus><button>Continue</button></form>`);
    return;
  }
  let body = "";
  for await (const chunk of request) body += chunk;
  const login = new URLSearchParams(body).get("login");
  const result = login ? { login: { accountId: login } } : { error: "access_denied", error_description: "no" };
  await provider.interactionFinished(request, response, result);
}

const server = createServer((request, response) => {
  if (request.url.startsWith("/interaction/")) interact(request, response).catch((error) => {
    console.error(error);
    response.writeHead(500).end();
  });
  else provider.callback()(request, response);
});

async function obey({ op, ...given }) {
  if (op === "set") Object.assign(set, given);
  if (op === "rotate") keys = [await makeKey()];
  if (op === "down") {
    server.close();
    server.closeAllConnections();
    await once(server, "close");
  }
  if (op === "up" && !server.listening) {
    server.listen(new URL(issuer).port, "127.0.0.1");
    await once(server, "listening");
  }
  if (op === "set" || op === "rotate") makeProvider();
}

keys = [await makeKey()];
server.listen(0, "127.0.0.1");
await once(server, "listening");
issuer = `http://localhost:${server.address().port}`;
makeProvider();
const said = () => console.log(JSON.stringify({ issuer }));
said();
for await (const line of createInterface({ input: process.stdin })) {
  await obey(JSON.parse(line));
  said();
}
process.exit(0);
