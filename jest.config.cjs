'use strict';

/** @type {import('jest').Config} */
module.exports = {
    testMatch: ['<rootDir>/test/**/*.test.ts'],
    // import() stays: node-llama-cpp is an ES module, which require() can't load here
    transform: {
        '\\.ts$': ['@swc/jest', { jsc: { target: 'es2022' }, module: { type: 'commonjs', ignoreDynamic: true } }]
    },
    resolver: '<rootDir>/test/resolve_built.cjs',
    globalSetup: '<rootDir>/test/build_fixtures.cjs',
    globalTeardown: '<rootDir>/test/exit.cjs',
    testTimeout: 120_000,
    testSequencer: '<rootDir>/test/sequencer.cjs',
    maxWorkers: 2
};
