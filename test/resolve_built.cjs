'use strict';
// What tests import from lib/ comes from dist/: what is tested is what is shipped. (A moduleNameMapper would do so to
// the lib/ of every package too.)

const path = require('node:path');

const root = path.resolve(__dirname, '..');
const lib = path.join(root, 'lib') + path.sep;

module.exports = (request, options) => {
    const file = path.resolve(options.basedir, request);
    const isOurs = /^\.\.?\//.test(request) && file.startsWith(lib);
    return options.defaultResolver(isOurs ? path.join(root, 'dist', file.slice(lib.length)) : request, options);
};
