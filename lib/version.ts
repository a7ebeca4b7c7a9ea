/* eslint-disable-next-line @typescript-eslint/no-require-imports -- outside of lib, where TypeScript doesn't look */
export const { version } = require('../package.json') as { version: string };
