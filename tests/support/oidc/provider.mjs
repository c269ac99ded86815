// An OpenID Connect provider on loopback: authorization code with PKCE, device flow, refresh tokens that rotate,
// tokens that are JWT or opaque, introspection, revocation. Any login name is taken, with any password.
//
//   node provider.mjs '{"accessTokenTtl": 60}'
//
// The first line on stdout is its issuer. `POST /control` with settings in JSON changes a running one; `GET /control`
// says how often each path was asked for. It ends when its stdin does.

import { generateKeyPairSync, randomBytes } from 'node:crypto';
import { createServer } from 'node:http';
import { Provider } from 'oidc-provider';
import { createMemoryAdapter } from 'oidc-provider/lib/adapters/memory_adapter.js';

const settings = {
  accessTokenTtl: 3600, // seconds, like all times here
  refreshTokenTtl: 86400,
  deviceCodeTtl: 600,
  deviceInterval: 1, // between two questions whether somebody has come
  scopes: ['openid', 'offline_access', 'profile', 'sessions', 'read', 'admin'],
  format: 'jwt', // of access tokens for a resource: jwt or opaque
  algorithm: 'RS256', // of JWT access tokens: RS256 or ES256
  resources: {}, // {URI: {format, algorithm}} where one differs
  audience: null, // who a token is for that was asked for without a resource: a URI, or null for the provider itself
  accounts: {}, // {login: {claim: value}}: more claims in the tokens of somebody
  outage: null, // 'error' answers 503, 'hang' takes requests and never answers
};

const cookieKey = randomBytes(16).toString('hex');
const store = createMemoryAdapter(); // outlives a provider that is made anew
let keys = [];
let provider;
const counts = {};

const CLIENTS = [
  {
    client_id: 's2uc',
    application_type: 'native',
    token_endpoint_auth_method: 'none',
    redirect_uris: ['http://127.0.0.1/callback'], // any port (RFC 8252)
    grant_types: ['authorization_code', 'refresh_token', 'urn:ietf:params:oauth:grant-type:device_code'],
    response_types: ['code'],
  },
  {
    client_id: 'gateway', // asks what an opaque token is worth
    client_secret: 'gateway-secret',
    redirect_uris: [],
    grant_types: ['client_credentials'],
    response_types: [],
  },
];

function makeKeys() {
  const named = (pair, alg) => ({
    ...pair.privateKey.export({ format: 'jwk' }), alg, use: 'sig', kid: randomBytes(8).toString('hex'),
  });
  return [
    named(generateKeyPairSync('rsa', { modulusLength: 2048 }), 'RS256'),
    named(generateKeyPairSync('ec', { namedCurve: 'P-256' }), 'ES256'),
  ];
}

function describeResource(_ctx, resource) {
  const { format, algorithm } = { ...settings, ...settings.resources[resource] };
  return {
    scope: settings.scopes.filter((name) => name !== 'openid' && name !== 'offline_access').join(' '),
    audience: resource,
    accessTokenTTL: settings.accessTokenTtl,
    ...(format === 'jwt' && { accessTokenFormat: 'jwt', jwt: { sign: { alg: algorithm } } }),
  };
}

function makeProvider(issuer) {
  const made = new Provider(issuer, {
    adapter: store,
    clients: CLIENTS,
    jwks: { keys },
    cookies: { keys: [cookieKey] },
    scopes: settings.scopes,
    claims: { openid: ['sub'], profile: ['preferred_username', 'groups'] },
    clientDefaults: { id_token_signed_response_alg: 'RS256' },
    enabledJWA: { idTokenSigningAlgValues: ['RS256', 'ES256'] },
    features: {
      devInteractions: { enabled: true },
      deviceFlow: { enabled: true },
      introspection: { enabled: true },
      revocation: { enabled: true },
      clientCredentials: { enabled: true },
      resourceIndicators: {
        enabled: true,
        defaultResource: (_ctx, _client, oneOf) => oneOf ?? settings.audience ?? undefined,
        useGrantedResource: () => true, // the token is for what was asked at the start
        getResourceServerInfo: describeResource,
      },
    },
    findAccount: (_ctx, sub) => ({
      accountId: sub, claims: () => ({ sub, preferred_username: sub, ...settings.accounts[sub] }),
    }),
    extraTokenClaims: (_ctx, token) => (
      token.accountId ? { preferred_username: token.accountId, ...settings.accounts[token.accountId] } : undefined
    ),
    issueRefreshToken: (_ctx, client) => client.grantTypeAllowed('refresh_token'),
    rotateRefreshToken: true, // and one that is used twice ends the whole grant
    expiresWithSession: () => false,
    ttl: {
      AccessToken: settings.accessTokenTtl,
      ClientCredentials: settings.accessTokenTtl,
      AuthorizationCode: 60,
      DeviceCode: settings.deviceCodeTtl,
      RefreshToken: settings.refreshTokenTtl,
      IdToken: 3600,
      Grant: 86400,
      Interaction: 600,
      Session: 86400,
    },
  });
  made.use(async (ctx, next) => {
    await next();
    if (ctx.oidc?.route === 'device_authorization' && ctx.body?.device_code) ctx.body.interval = settings.deviceInterval;
  });
  made.on('server_error', (_ctx, error) => console.error(error));
  return made.callback();
}

async function control(issuer, request, response) {
  if (request.method === 'POST') {
    const parts = [];
    for await (const part of request) parts.push(part);
    const { rotate, ...changes } = JSON.parse(Buffer.concat(parts).toString());
    Object.assign(settings, changes);
    // The first key of an algorithm signs. Old ones stay known when keys are added, and are gone when they are replaced.
    if (rotate === 'add') keys = [...makeKeys(), ...keys];
    if (rotate === 'replace') keys = makeKeys();
    provider = makeProvider(issuer); // what it had granted stays granted
  }
  response.setHeader('content-type', 'application/json');
  response.end(JSON.stringify(counts));
}

Object.assign(settings, JSON.parse(process.argv[2] ?? '{}'));
const server = createServer((request, response) => {
  const { pathname } = new URL(request.url, 'http://127.0.0.1');
  if (pathname === '/control') return control(server.issuer, request, response);
  counts[pathname] = (counts[pathname] ?? 0) + 1;
  if (settings.outage === 'hang') return undefined;
  if (settings.outage === 'error') return response.writeHead(503).end();
  return provider(request, response);
});

server.listen(settings.port ?? 0, '127.0.0.1', () => {
  server.issuer = `http://127.0.0.1:${server.address().port}`;
  keys = makeKeys();
  provider = makeProvider(server.issuer);
  console.log(server.issuer);
});
process.stdin.resume().on('end', () => process.exit(0));
